"""Counted = attributed + unattributed, whatever happens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procnet.errors import ConservationError
from procnet.ledger.flows import Shares, Tally
from procnet.model import TCP, UDP, EventKind, FlowCount, ProcessId, Reason
from tests.unit.ledger.world import (
    ALICE,
    BOB,
    CAROL,
    MS,
    T0,
    World,
    connected,
    flow,
    udp_socket,
)

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["packets", "event", "look", "settle", "interval"]),
        st.integers(0, 5),
        st.booleans(),
        st.integers(1, 5),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=200)
def test_bytes_are_conserved_whatever_the_witnesses_say(steps: list) -> None:
    world = World(max_flows=3, max_waiting=5)
    fed = [0, 0]
    taken = Tally()
    for at_ms, (step, which, flag, number) in enumerate(steps):
        key = flow(TCP if which % 2 else UDP, 4001 + which // 2)
        process = (ALICE, BOB, CAROL)[which % 3]
        if step == "packets":
            count = world.packets(at_ms * 10, key, sent=flag, number=number, opens=which == 5)
            fed[flag] += count.wire_bytes
        elif step == "event":
            world.event(at_ms * 10, process, EventKind(number), key, inode=7000 + which)
        elif step == "look":
            entry = connected(key, 7000 + which) if flag else udp_socket(7000 + which)
            world.look(at_ms * 10, (entry, {process}))
        elif step == "settle":
            world.settle(at_ms * 10, final=flag)
        else:
            taken.add_tally(world.ledger.take_interval().total)
        account = world.ledger.account()
        assert account.total.sent.wire_bytes == fed[True]
        assert account.total.received.wire_bytes == fed[False]
        assert len(account.rows) <= 3 + 5 + len(steps)
    world.settle(10_000, final=True)
    taken.add_tally(world.ledger.take_interval().total)
    assert taken == world.ledger.account().total, "intervals add up to the whole"
    assert Reason.PENDING not in world.verdicts()


def test_an_account_that_does_not_add_up_is_an_error() -> None:
    world = World()
    world.packets(0)
    world.ledger._counted.add(FlowCount("eth0", None, True, 1, 1, 1, 0, 0, False, None))
    with pytest.raises(ConservationError, match="counted"):
        world.ledger.account()


def test_evicted_flows_are_counted_and_keep_their_bytes() -> None:
    world = World(max_flows=2)
    for port in range(7):
        world.event(0, ALICE, key=flow(UDP, 4001 + port), inode=7001 + port)
        world.packets(1, flow(UDP, 4001 + port))
    world.settle(2)
    assert world.verdicts() == {ALICE: (7, 707)}
    assert len(world.ledger.account().rows) == 2
    assert world.ledger.evicted_flows == 5


def test_evicted_processes_lose_their_name_and_not_their_bytes() -> None:
    from procnet.ledger.verdict import Verdict
    from procnet.model import Evidence

    table = Shares(max_processes=2)
    for pid in range(5):
        verdict = Verdict(ProcessId(pid, 0), Evidence.KERNEL_EVENT, None, frozenset())
        table.add(FlowCount("lo", flow(), True, 1, 131, 103, 0, 0, False, None), verdict)
    assert table.reasons()[Reason.EVICTED].sent.wire_bytes == 3 * 131
    assert sum(tally.sent.wire_bytes for _, tally in table.processes()) == 2 * 131


def test_what_belongs_to_no_flow_keeps_its_reason() -> None:
    world = World()
    for reason in (Reason.NOT_IP, Reason.UNDECODABLE, Reason.EVICTED):
        world.ledger.count([FlowCount("eth0", None, False, 3, 126, 0, 0, 0, False, reason)])
    world.settle(0)
    assert world.verdicts() == {
        Reason.NOT_IP: (3, 0),
        Reason.UNDECODABLE: (3, 0),
        Reason.EVICTED: (3, 0),
    }
    assert world.ledger.undecodable_packets == 3


def test_what_is_forwarded_is_never_asked_for_an_owner() -> None:
    world = World()
    forwarded = FlowCount("eth0", flow(), False, 3, 126, 0, 0, 0, False, Reason.FORWARDED)
    world.event(0, ALICE)
    world.ledger.count([forwarded])
    world.settle(1)
    assert world.verdicts() == {Reason.FORWARDED: (3, 0)}


def test_too_many_waiting_runs_are_evicted_and_counted() -> None:
    world = World(max_waiting=10)
    for port in range(30):
        world.packets(port, flow(UDP, 4001 + port))
    world.settle(31)
    assert world.verdicts() == {Reason.EVICTED: (20, 2020), Reason.PENDING: (10, 1010)}
    assert world.ledger.evicted_runs == 20
    world.look(32)
    world.look(34)
    world.settle(36)
    assert world.verdicts() == {Reason.EVICTED: (20, 2020), Reason.NO_SOCKET: (10, 1010)}
    kept = {key.flow.local_port for key, _ in world.ledger.account().rows if key.reason}
    assert kept == set(range(4001, 4031)), "the oldest went, and all have their rows"


def test_a_flood_of_strangers_does_not_evict_what_a_witness_knows() -> None:
    world = World(max_waiting=10)
    world.look(0, (udp_socket(7001, 4001), {ALICE}))
    world.packets(5, flow(UDP, 4001))
    for port in range(30):
        world.packets(6 + port, flow(UDP, 5001 + port))
    world.settle(40)
    for at_ms in (41, 50):
        world.look(at_ms, (udp_socket(7001, 4001), {ALICE}))
        world.settle(at_ms + 5)
    assert world.verdicts()[ALICE] == (1, 101)
    assert world.verdicts()[Reason.EVICTED] == (21, 2121)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_account_between_two_steps_of_settling_adds_up(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("procnet.ledger.ledger.SLICE_RUNS", 7)
    world = World()
    world.event(0, ALICE)
    for at_ms in range(1, 24):
        world.packets(at_ms)
    settling = world.ledger.settling(T0 + 30 * MS)
    for _ in range(steps):
        next(settling)
    booked = {ALICE: (7 * steps, 707 * steps)} if steps else {}
    waiting = 23 - 7 * steps
    assert world.verdicts() == booked | {Reason.PENDING: (waiting, 101 * waiting)}
    del settling
    world.settle(31)
    assert world.verdicts() == {ALICE: (23, 2323)}, "a settling that was broken off loses nothing"


def test_an_account_stays_as_it_was_taken() -> None:
    world = World()
    world.event(0, ALICE)
    world.packets(1)
    world.settle(2)
    accounts = (world.ledger.account(), world.ledger.take_interval())
    world.packets(3, number=3)
    world.settle(4)
    for account in accounts:
        assert account.rows[0][1].sent.packets == 1
        assert account.processes[0][1].sent.packets == 1
    (row,) = world.ledger.take_interval().rows
    assert (row[1].sent.packets, row[1].first_ns) == (3, T0 + 3 * MS)
    (row,) = world.ledger.account().rows
    assert (row[1].sent.packets, row[1].first_ns) == (4, T0 + MS)


def test_forgetting_is_bounded_and_counted() -> None:
    from procnet.ledger.owners import OwnerTable
    from procnet.model import OwnerEvent

    owners = OwnerTable(max_endpoints=10)
    for port in range(30):
        key = flow(UDP, 4001 + port)
        owners.observe(
            [OwnerEvent(port, EventKind.SEND, *key, 7001 + port, ALICE, "a", 0, 0, False)]
        )
    owners.forget(100)
    assert owners.evicted_endpoints == 20


def test_an_interval_costs_what_moved_in_it_and_not_what_ever_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.ledger.take_interval()  # from here on intervals have an account of their own
    world.packets(0)
    world.settle(10_000, final=True)

    def walk() -> None:
        raise AssertionError("every process since the start was walked over")

    monkeypatch.setattr(world.ledger._booked.shares, "processes", walk)
    assert world.ledger.take_interval().total.sent.packets == 1
    assert world.ledger.take_interval().total.sent.packets == 0
