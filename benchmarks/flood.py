"""Does the ledger stand a flood of flows that are all new? Time for each, memory, longest slice.

    python3 benchmarks/flood.py [FLOWS] [CASE]

100 000 flows a drain, each drain followed by a look at the sockets. Every case runs in a process of
its own. RSS is printed after the first drain, at half time and at the end. Tables are not yet full
after the first drain: what must be 1 is the ratio of the end to the half.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from procnet.ledger.ledger import Ledger
from procnet.model import (
    TCP,
    UDP,
    EventKind,
    Features,
    FlowCount,
    FlowKey,
    Loss,
    OwnerEvent,
    Process,
    ProcessId,
    Socket,
    SocketScan,
)
from procnet.report.report import build_report

NETNS, HERE, ANY = 1, b"\x0a\0\0\1", bytes(4)
T0 = 1_800_000_000_000_000_000
DRAIN_FLOWS, DRAIN_NS = 100_000, 500_000_000
OWNER = ProcessId(1009, 0)


class Case(NamedTuple):
    """``told``: each flow by an event of its own. ``held``: all from a socket that a look shows."""

    name: str
    protocol: int
    sent: bool = False
    told: bool = False
    held: bool = False
    closes: bool = False


CASES = (
    Case("SYN scan, nobody there", TCP),
    Case("UDP spray, nobody there", UDP),
    Case("UDP spray at one socket, seen by looks", UDP, held=True),
    Case("UDP spray by one socket, each flow told", UDP, sent=True, told=True),
    Case("TCP connections, each told and closed", TCP, sent=True, told=True, closes=True),
)


def key_of(case: Case, number: int) -> FlowKey:
    # A prime stride, so that no port comes in order.
    port = 4001 if case.held or (case.told and not case.closes) else 1024 + number * 7919 % 60_013
    remote = b"\x0a" + (number // 50_000).to_bytes(3, "big")
    return FlowKey(NETNS, case.protocol, HERE, port, remote, 1 + number % 50_000)


def drains(case: Case, flows: int) -> Iterator[tuple[int, list[FlowCount], list[OwnerEvent]]]:
    for drain in range(flows // DRAIN_FLOWS):
        began_ns = T0 + drain * DRAIN_NS
        counts: list[FlowCount] = []
        events: list[OwnerEvent] = []
        for number in range(drain * DRAIN_FLOWS, (drain + 1) * DRAIN_FLOWS):
            key = key_of(case, number)
            at_ns = began_ns + number % DRAIN_FLOWS * 1000
            opens = case.protocol == TCP
            counts.append(
                FlowCount("eth0", key, case.sent, 1, 60, 0, at_ns, at_ns, opens, None)
            )  # fmt: skip
            if case.told:
                inode = 7000 + number if case.closes else 7001
                told = (inode, OWNER, "name", 0, 0, False)
                kind = EventKind.CONNECT if case.closes else EventKind.SEND
                events.append(OwnerEvent(at_ns - 1000, kind, *key, *told))
                if case.closes:
                    events.append(OwnerEvent(at_ns + 1000, EventKind.CLOSE, *key, *told))
        yield began_ns + DRAIN_NS, counts, events


def look_at(case: Case, at_ns: int) -> SocketScan:
    held = Socket(NETNS, UDP, 4, ANY, 4001, ANY, 0, "unconnected", 7001, 0)
    sockets = [held] if case.held or (case.told and not case.closes) else []
    holders = {socket.inode: frozenset((OWNER,)) for socket in sockets}
    return SocketScan(at_ns, at_ns + 1_000_000, sockets, holders, 0, 0)


def rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


class Clock:
    """Adds up the processor time of steps; a monitor holds its lock while it counts or settles."""

    def __init__(self) -> None:
        self.spent_s = self.longest_s = 0.0
        self.parts: dict[str, float] = {}

    def took(self, name: str, began_s: float) -> None:
        took_s = time.process_time() - began_s
        self.spent_s += took_s
        if name in ("count", "settle"):
            self.longest_s = max(self.longest_s, took_s)
        self.parts[name] = self.parts.get(name, 0.0) + took_s


def step(name: str, clock: Clock, steps: Iterator[bool]) -> None:
    more = True
    while more:
        began_s = time.process_time()
        more = next(steps, False)
        clock.took(name, began_s)


def settle(ledger: Ledger, clock: Clock, now_ns: int, *, final: bool = False) -> None:
    step("settle", clock, ledger.settling(now_ns, final=final))
    began_s = time.process_time()
    ledger.forget(now_ns)
    clock.took("forget", began_s)


def run(case: Case, flows: int) -> None:
    ledger, clock = Ledger(), Clock()
    now_ns = 0.0
    grown_mib: list[float] = []
    ledger.look(look_at(case, T0 - DRAIN_NS))
    for now_ns, counts, events in drains(case, flows):
        step("count", clock, ledger.counting(counts))
        began_s = time.process_time()
        ledger.observe(events)
        clock.took("observe", began_s)
        del counts, events
        settle(ledger, clock, now_ns)
        began_s = time.process_time()
        ledger.look(look_at(case, now_ns))
        clock.took("look", began_s)
        settle(ledger, clock, now_ns + 2_000_000)
        ledger.take_interval()
        grown_mib.append(rss_mib())
    settle(ledger, clock, int(now_ns) + DRAIN_NS, final=True)
    first_mib, half_mib, last_mib = grown_mib[0], grown_mib[len(grown_mib) // 2 - 1], rss_mib()
    account_s = time.process_time()
    account = ledger.account()
    report_s = time.process_time()
    report = build_report(
        account, started_ns=T0, ended_ns=int(now_ns), loss=Loss(), features=Features("", ""),
        process_of=lambda process: Process(*process, name="name"),
    )  # fmt: skip
    ended_s = time.process_time()
    assert report.totals.sent.packets + report.totals.received.packets == flows
    unowned = ", ".join(
        f"{reason.value} {both.sent.packets + both.received.packets}"
        for reason, both in report.reasons.items()
    )
    parts = ", ".join(f"{name} {part / flows * 1e6:.2f}" for name, part in clock.parts.items())
    print(
        f"{case.name:<40} {clock.spent_s / flows * 1e6:5.2f} µs a flow ({parts}),"
        f" lock held at most {clock.longest_s * 1000:.0f} ms,"
        f" RSS {first_mib:.0f}, {half_mib:.0f}, {last_mib:.0f} MiB,"
        f" ratio {last_mib / half_mib:.2f};"
        f" account {(report_s - account_s) * 1000:.0f} ms,"
        f" report of {len(report.flows)} flows {(ended_s - report_s) * 1000:.0f} ms;"
        f" {unowned}",
        flush=True,
    )


def main() -> None:
    flows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    if len(sys.argv) > 2:
        run(CASES[int(sys.argv[2])], flows)
        return
    for number in range(len(CASES)):
        subprocess.run([sys.executable, __file__, str(flows), str(number)], check=True)


if __name__ == "__main__":
    main()
