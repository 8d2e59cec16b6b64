"""Hosts made by chance: whatever sockets and packets do, no packet has a wrong name."""

import pytest

from procnet.model import Reason
from tests.unit.ledger.simulator import Simulator

SEEDS = 60


@pytest.mark.parametrize("reuse", [False, True], ids=["exclusive ports", "SO_REUSEPORT"])
@pytest.mark.parametrize("events", [True, False], ids=["with events", "looks only"])
def test_no_packet_is_credited_to_a_process_that_cannot_have_moved_it(
    events: bool, reuse: bool
) -> None:
    packets = named = 0
    for seed in range(SEEDS):
        host = Simulator(seed, events=events, reuse=reuse).run(120)
        wrong = [(packet.count, packet.verdict, packet.movers) for packet in host.wrong()]
        assert not wrong, f"seed {seed}: {wrong[0]}"
        packets += len(host.packets)
        verdicts = [packet.verdict for packet in host.packets if packet.verdict]
        assert len(verdicts) == len(host.packets), "every packet is booked in the end"
        named += sum(verdict.process is not None for verdict in verdicts)
        assert not any(verdict.reason is Reason.PENDING for verdict in verdicts)
    # A ledger that names nobody is never wrong: how much it must still name.
    assert named > packets * (0.6 if events else 0.3)
