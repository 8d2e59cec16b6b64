"""What does the ledger cost? Runs a second for flows that are known, told of and unknown; a look.

    python3 benchmarks/ledger.py [RUNS]

One process, no packets: counts, events and looks are made up, 5000 runs a tick.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from procnet.ledger.ledger import Ledger
from procnet.model import (
    TCP,
    UDP,
    EventKind,
    FlowCount,
    FlowKey,
    OwnerEvent,
    ProcessId,
    Socket,
    SocketScan,
)

NETNS, HERE = 1, b"\x0a\0\0\1"
T0 = 1_800_000_000_000_000_000
TICK_NS, RUNS_PER_TICK, TICKS_PER_LOOK = 50_000_000, 5000, 20
OWNER = ProcessId(1009, 0)


def key_of(number: int, protocol: int) -> FlowKey:
    remote = b"\x0a\1" + (number & 0xFFFF).to_bytes(2, "big")
    return FlowKey(NETNS, protocol, HERE, 4001 + (number >> 16), remote, 53)


def event_of(key: FlowKey, number: int, at_ns: int) -> OwnerEvent:
    return OwnerEvent(at_ns, EventKind.SEND, *key, 7000 + number, OWNER, "name", 0, 0, False)


def look_at(number: int, at_ns: int) -> SocketScan:
    sockets = [
        Socket(NETNS, TCP, 4, *key_of(each, TCP)[2:], "established", 7000 + each, 0)
        for each in range(number)
    ]
    holders = {socket.inode: frozenset((OWNER,)) for socket in sockets}
    return SocketScan(at_ns, at_ns + 1_000_000, sockets, holders, 0, 0)


def ticks(runs: int, flows: int, protocol: int) -> Iterator[tuple[int, list[FlowCount]]]:
    for tick in range(runs // RUNS_PER_TICK):
        now_ns = T0 + tick * TICK_NS
        yield (
            now_ns + TICK_NS,
            [
                FlowCount(
                    "eth0", key_of((tick * RUNS_PER_TICK + each) % flows, protocol), True, 1, 131,
                    103, now_ns + each, now_ns + each, False, None,
                )
                for each in range(RUNS_PER_TICK)
            ],
        )  # fmt: skip


def measure(name: str, runs: int, flows: int, *, told: bool = False, protocol: int = UDP) -> None:
    ledger = Ledger()
    spent_s = worst_s = 0.0
    for tick, (now_ns, counts) in enumerate(ticks(runs, flows, protocol)):
        events = [
            event_of(count.key, number, count.first_ns - 1000)
            for number, count in enumerate(counts, tick * RUNS_PER_TICK)
            if told and count.key and number < flows
        ]
        scan = look_at(0, now_ns)
        began_s = time.perf_counter()
        ledger.count(counts)
        ledger.observe(events)
        if tick % TICKS_PER_LOOK == 0:
            ledger.look(scan)
        ledger.settle(now_ns)
        took_s = time.perf_counter() - began_s
        spent_s, worst_s = spent_s + took_s, max(worst_s, took_s)
    ledger.account()
    rss_mib = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
    print(
        f"{name:<44} {runs / spent_s:>9.0f} runs/s, worst tick {worst_s * 1000:.0f} ms,"
        f" RSS {rss_mib} MiB"
    )


def measure_look(number: int) -> None:
    ledger = Ledger()
    for name in ("first", "second", "third"):
        scan = look_at(number, T0)
        began_s = time.perf_counter()
        ledger.look(scan)
        print(f"{name} look at {number} sockets: {(time.perf_counter() - began_s) * 1000:.1f} ms")


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 400_000
    measure("flows that events told of, 1000", runs, 1000, told=True)
    measure("flows that events told of, each of one run", runs, runs, told=True)
    measure("flows of nobody, UDP, each of one run", runs, runs)
    measure("flows of nobody, TCP, each of one run", runs, runs, protocol=TCP)
    measure_look(20_000)


if __name__ == "__main__":
    main()
