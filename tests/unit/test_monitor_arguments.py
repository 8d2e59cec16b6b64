"""What a Monitor refuses before it touches anything."""

import pytest

import procnet
from procnet import ladder
from procnet.features import unknown, yes
from procnet.model import Feature


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"interfaces": "lo"}, "list of names"),
        ({"interval_s": 0}, "interval_s"),
        ({"interval_s": float("nan")}, "interval_s"),
        ({"interval_s": float("inf")}, "interval_s"),
        ({"max_flows": 0}, "max_flows"),
        ({"kernel": "nosuch"}, "kernel must be one of auto, core, kprobe, off"),
        ({"counting": "nosuch"}, "counting must be one of"),
        ({"counting": "socket", "compare_sockets": True}, "counting must not be socket"),
    ],
)
def test_a_value_that_cannot_be_right_is_refused_at_once(arguments: dict, said: str) -> None:
    with pytest.raises(procnet.UsageError, match=said):
        procnet.Monitor(**arguments)


def test_making_one_asks_for_nothing() -> None:
    assert procnet.Monitor(["nosuch0"]).interfaces == ()


@pytest.fixture
def nobody_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """To load, attach or compile anything; by looking, nothing speaks against it."""

    def tries() -> Feature:
        pytest.fail("it was tried")

    def promise() -> Feature:
        return unknown("core owners", "worth a try")

    monkeypatch.setattr(ladder, "_OWNERS", [("core", tries, promise), ("kprobe", tries, tries)])
    for room, name in (
        (ladder.counts, "probe"), (ladder.core, "probe_counting"), (ladder.handle, "probe"),
        (ladder.conntrack, "probe"), (ladder.fork_events, "probe"),
    ):  # fmt: skip
        monkeypatch.setattr(room, name, tries)
    monkeypatch.setattr(ladder.counts, "promise", lambda: unknown("kernel counting", ""))
    monkeypatch.setattr(ladder.handle, "promise", lambda: yes("python counting", ""))


@pytest.mark.usefixtures("nobody_tries")
def test_what_would_be_tried_is_told_without_trying() -> None:
    assert procnet.Monitor().features.owners == procnet.Watch().features.owners == "core"
    monitor = procnet.Monitor(["lo"], counting="socket")
    with pytest.raises(procnet.UnsupportedError, match="a socket has no interface"):
        monitor.features  # noqa: B018
    with pytest.raises(procnet.UnsupportedError, match="a socket has no interface"):
        monitor.start()
