"""When owners elsewhere are asked for, and what becomes of news of translations."""

from __future__ import annotations

from pathlib import Path

import pytest

from procnet.errors import ProcnetError
from procnet.ledger.elsewhere import Elsewhere
from procnet.ledger.owners import OwnerTable
from procnet.model import SocketScan, Translation
from procnet.sockets.conntrack import News
from procnet.translated import Translated, may_be_elsewhere
from tests.unit.ledger.test_elsewhere import masqueraded, on_wire, run
from tests.unit.ledger.world import MS, T0


def sysctl(root: Path, ipv4: str, ipv6: str | None) -> Path:
    for name, value in (("ipv4/ip_forward", ipv4), ("ipv6/conf/all/forwarding", ipv6)):
        if value is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(value + "\n")
    return root


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "elsewhere"),
    [("0", "0", False), ("1", "0", True), ("0", "1", True), ("0", None, False), ("1", None, True)],
)
def test_by_itself_where_this_namespace_forwards(
    tmp_path: Path, ipv4: str, ipv6: str | None, elsewhere: bool
) -> None:
    root = sysctl(tmp_path, ipv4, ipv6)
    assert may_be_elsewhere("auto", root) is elsewhere
    assert may_be_elsewhere("on", root) is True
    assert may_be_elsewhere("off", root) is False


def test_by_itself_where_sockets_are_counted(tmp_path: Path) -> None:
    root = sysctl(tmp_path, "0", "0")
    assert may_be_elsewhere("auto", root, at_sockets=True)
    assert may_be_elsewhere("on", root, at_sockets=True)
    assert not may_be_elsewhere("off", root, at_sockets=True)


@pytest.mark.parametrize(
    "name", ["ipv4/conf/docker0/forwarding", "ipv6/conf/docker0/force_forwarding"]
)
def test_by_itself_where_one_interface_forwards(tmp_path: Path, name: str) -> None:
    root = sysctl(tmp_path, "0", "0")
    of_one = root / name
    of_one.parent.mkdir(parents=True)
    of_one.write_text("0\n")
    assert not may_be_elsewhere("auto", root)
    of_one.write_text("1\n")
    assert may_be_elsewhere("auto", root)


def test_ipv6_is_not_forwarded_for_one_interface_alone(tmp_path: Path) -> None:
    """There, ``forwarding`` of an interface only says that it is a router's."""
    root = sysctl(tmp_path, "0", "0")
    (root / "ipv6/conf/docker0").mkdir()
    (root / "ipv6/conf/docker0/forwarding").write_text("1\n")
    assert not may_be_elsewhere("auto", root)


class FakeConnections:
    """Tells what it is given, and counts how often it is asked for everything."""

    def __init__(self) -> None:
        self.there: list[Translation] = []
        self.news: list[News] = []
        self.dumps = 0
        self.refuses = False
        self.malformed_messages = 0
        self.closed = False
        self.takes_s = 0.0
        self.now_s = 1000.0

    def read(self) -> News:
        return self.news.pop(0) if self.news else News([], [], T0, T0, False)

    def dump(self) -> list[Translation]:
        self.dumps += 1
        self.now_s += self.takes_s
        if self.refuses:
            raise ProcnetError("no answer")
        return self.there

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> FakeConnections:
    made = FakeConnections()
    monkeypatch.setattr("procnet.translated.Connections", lambda: made)
    monkeypatch.setattr("procnet.translated.time.monotonic", lambda: made.now_s)
    return made


def test_news_that_were_missed_are_looked_up(connections: FakeConnections) -> None:
    elsewhere = Elsewhere(OwnerTable())
    translated = Translated(elsewhere, everywhere=True)
    assert elsewhere.everywhere and not elsewhere.is_blind
    connections.there = [masqueraded()]
    connections.news = [News([], [], T0, T0 + MS, True)]
    translated.observe()
    assert connections.dumps == 2
    assert elsewhere.translations.lost == 1
    assert elsewhere.translations.find(run(on_wire(), 1)).ends


def test_a_look_that_fails_is_a_loss(connections: FakeConnections) -> None:
    elsewhere = Elsewhere(OwnerTable())
    translated = Translated(elsewhere, everywhere=False)
    connections.refuses = True
    connections.news = [News([masqueraded()], [], T0, T0 + MS, True)]
    translated.observe()
    assert elsewhere.translations.lost == 2
    assert not elsewhere.translations.find(run(on_wire(), 100)).sure
    translated.close()
    assert connections.closed


@pytest.mark.parametrize("refuses", [False, True])
def test_looks_take_their_share_of_the_time_in_a_flood_too(
    connections: FakeConnections, refuses: bool
) -> None:
    elsewhere = Elsewhere(OwnerTable())
    translated = Translated(elsewhere, everywhere=False)
    connections.refuses, connections.takes_s = refuses, 5.0
    missed = News([], [], T0, T0 + MS, True)
    nothing = SocketScan(T0, T0, [], {}, 0, 0)
    before_s = connections.now_s
    while connections.dumps < 1 + 7:
        connections.news = [missed]
        translated.observe()
        translated.look(nothing)
        connections.now_s += 0.1
    assert connections.now_s - before_s == pytest.approx(6 * 100 + 5, rel=0.01)


def test_a_look_that_was_not_due_is_made_later(connections: FakeConnections) -> None:
    connections.takes_s = 0.01
    elsewhere = Elsewhere(OwnerTable())
    translated = Translated(elsewhere, everywhere=False)
    connections.news = [News([], [], T0, T0 + MS, True)]
    translated.observe()
    nothing = SocketScan(T0, T0, [], {}, 0, 0)
    translated.look(nothing)
    assert connections.dumps == 1
    assert elsewhere.translations.is_to_be_confirmed
    connections.now_s += 0.2
    translated.look(nothing)
    assert connections.dumps == 2
    assert not elsewhere.translations.is_to_be_confirmed


def test_one_that_refuses_from_the_beginning_is_closed(connections: FakeConnections) -> None:
    connections.refuses = True
    translated = Translated(Elsewhere(OwnerTable()), everywhere=False)
    assert connections.closed
    translated.observe()
    assert connections.dumps == 1
