"""What the kernel tells reaches the ledger, and so does what it could not tell."""

from procnet.ledger.ledger import Ledger
from procnet.model import EventKind, OwnerEvent, Process
from procnet.witnesses import Witnesses
from tests.unit.ledger.world import ALICE, NETNS, T0, flow


class LossyHooks:
    """One event that was read, and one that found the ring full after it."""

    def read(self) -> list[OwnerEvent]:
        return [OwnerEvent(T0, EventKind.SEND, *flow(), 7001, ALICE, "a", 0, 0, False)]

    def read_processes(self) -> list[Process]:
        return [Process(*ALICE, name="a", exe="/usr/bin/a", parent_pid=7, cgroup="/")]

    def events_lost(self) -> int:
        return 1

    def processes_lost(self) -> int:
        return 3


class ForeignHooks(LossyHooks):
    """The same in another network namespace."""

    def read(self) -> list[OwnerEvent]:
        return [event._replace(netns=NETNS + 1) for event in super().read()]

    def events_lost(self) -> int:
        return 0


def test_events_of_other_namespaces_are_not_kept() -> None:
    ledger = Ledger()
    witnesses = Witnesses("proc", NETNS, ledger)
    witnesses.events = ForeignHooks()  # type: ignore[assignment]
    witnesses.observe()
    assert list(ledger.owners.claims(flow())) == []
    assert list(ledger.owners.claims(flow()._replace(netns=NETNS + 1))) == []


def test_an_event_is_not_believed_beyond_a_loss_in_its_own_batch() -> None:
    ledger = Ledger()
    witnesses = Witnesses("proc", NETNS, ledger)
    witnesses.events = LossyHooks()  # type: ignore[assignment]
    witnesses._read_ns = T0 - 1
    witnesses.observe()
    (claim,) = ledger.owners.claims(flow())
    assert claim.sure_to_ns == T0
    assert witnesses.events_lost == 1
    assert witnesses.processes_lost == 3


def test_a_process_that_is_gone_has_what_the_kernel_told() -> None:
    witnesses = Witnesses("proc", NETNS, Ledger())
    witnesses.events = LossyHooks()  # type: ignore[assignment]
    witnesses.observe()
    process = witnesses.process(ALICE)
    assert (process.name, process.exe, process.parent_pid) == ("a", "/usr/bin/a", 7)
