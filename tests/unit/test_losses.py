"""What is lost on the way to a report is a figure of the report."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from procnet.model import TCP, UDP, Features, FlowCount, Loss
from procnet.monitor import Monitor
from procnet.report.report import Report
from procnet.sockets import conntrack
from procnet.witnesses import Witnesses
from tests.unit.ledger.world import NETNS
from tests.unit.sockets.netlink import TellingNetlink, done, netlink_message
from tests.unit.sockets.test_conntrack import connection

NEW, DESTROY = 0x100, 0x102
MASQUERADED = connection(
    (UDP, "10.0.0.2", 5000, "192.0.2.9", 53), (UDP, "192.0.2.9", 53, "192.0.2.1", 8395)
)
WITHOUT_ENDS = bytes(4)
CUT_SHORT = MASQUERADED[:40]
PLAIN = connection(
    (TCP, "192.0.2.1", 5000, "192.0.2.9", 53), (TCP, "192.0.2.9", 53, "192.0.2.1", 5000)
)
DUMPED = (done(sequence=1), done(sequence=2))
DUMPED_AGAIN = (done(sequence=3), done(sequence=4))


class IdleTap:
    dropped_packets = interruptions = unsplit_packets = 0

    def drain(self) -> list[FlowCount]:
        return []


def report_after(
    news: Iterable[bytes], answers: Iterable[bytes], monkeypatch: pytest.MonkeyPatch
) -> Report:
    """Of a monitor to which conntrack tells this."""
    sockets = iter(
        (
            TellingNetlink(news, silence=BlockingIOError),
            TellingNetlink(answers, silence=TimeoutError),
        )
    )
    monkeypatch.setattr(conntrack, "_connect", lambda: next(sockets))
    monkeypatch.setattr("procnet.witnesses._open_forks", lambda: None)
    monitor = Monitor(["lo"])
    monitor._features = Features("python", "proc")
    monitor._tap = IdleTap()  # type: ignore[assignment]
    monitor._witnesses = Witnesses(None, NETNS, monitor._ledger)
    monitor._witnesses.observe()
    return monitor.report()


def test_translations_that_are_understood_are_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [netlink_message(kind, MASQUERADED) for kind in (NEW, DESTROY)]
    answers = [netlink_message(NEW, MASQUERADED), netlink_message(NEW, PLAIN), *DUMPED]
    assert report_after(messages, answers, monkeypatch).loss == Loss()


@pytest.mark.parametrize("body", [WITHOUT_ENDS, CUT_SHORT], ids=["no ends", "cut short"])
def test_news_of_translations_that_are_not_understood_are_a_loss(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    news = [netlink_message(NEW, MASQUERADED) + netlink_message(DESTROY, body)]
    report = report_after(news, [*DUMPED, *DUMPED_AGAIN], monkeypatch)
    assert report.loss == Loss(translations_lost=1)


@pytest.mark.parametrize(
    "damage", [netlink_message(NEW, WITHOUT_ENDS), bytes(7)], ids=["no ends", "no message"]
)
def test_a_translation_that_a_dump_does_not_tell_of_is_a_loss(
    damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [netlink_message(NEW, MASQUERADED) + damage, *DUMPED]
    assert report_after([], answers, monkeypatch).loss == Loss(translations_lost=1)
