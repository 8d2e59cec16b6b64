"""What does counting in the kernel cost: the program for a packet, a drain for a flow?

    python benchmarks/count_program.py [--repeat 200000] [--flows 50000] [--rounds 5]

As root. First the program runs on frames that are made here (BPF_PROG_TEST_RUN), so that nothing
else is measured, and its counter is in the CPU's cache; a frame that it hands up (ARP) shows what a
run costs that does nothing. Then --flows datagrams are sent over loopback, where each is two
entries of the table, one for each end, and drained: the CPU time of that, and how long it took,
which has the wait for a grace period in it. In each round there are other flows, then the same ones
again, both from the table to counts of flows, and then once more, only read from the table: the
rest is Python's objects. The least of the rounds and the median; the figures of other machines
differ, the ratios much less.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable
from statistics import median

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from procnet.bpf import counts
from procnet.bpf.libbpf import BpfObject
from procnet.capture.engine import KernelSide
from procnet.model import UDP, Counted, FlowCount
from procnet.testing import frames

HERE, THERE = "10.0.0.1", "10.0.0.2"
HERE6, THERE6 = "fd00::1", "fd00::2"
V4 = frames.udp_frame(HERE, 1, THERE, 2, bytes(64))
DATAGRAM = frames.udp(bytes(64), 1, 2)
EXTENDED = frames.ipv6_extension(frames.ipv6_extension(DATAGRAM, UDP), 60)
NOTHING = "handed up"
FRAMES = {
    NOTHING: frames.ethernet(frames.arp(HERE, THERE), ethertype=0x0806),
    "IPv4 UDP": V4,
    "IPv4 UDP, empty": frames.udp_frame(HERE, 1, THERE, 2),
    "IPv4 UDP, options": frames.ethernet(
        frames.ipv4(DATAGRAM, HERE, THERE, UDP, options=b"\1" * 8)
    ),
    "IPv4 UDP, tagged": frames.ethernet(frames.vlan(V4[14:], 5), ethertype=0x8100),
    "IPv4 TCP": frames.tcp_frame(HERE, 1, THERE, 2, bytes(64)),
    "IPv6 UDP": frames.udp_frame(HERE6, 1, THERE6, 2, bytes(64)),
    "IPv6 UDP, 2 extensions": frames.ethernet(frames.ipv6(EXTENDED, HERE6, THERE6, 0)),
}


def time_program(repeat: int, rounds: int) -> None:
    bpf = BpfObject(counts.OBJECT.read_bytes())
    best = dict.fromkeys(FRAMES, sys.maxsize)
    try:
        bpf.load()
        for _ in range(rounds):
            for name, frame in FRAMES.items():
                best[name] = min(best[name], bpf.run_program("on_packet", frame, repeat)[1])
    finally:
        bpf.close()
    print(f"{'frame':24} {'ns/packet':>10} {'less a bare run':>16}")
    for name, took_ns in best.items():
        print(f"{name:24} {took_ns:10} {took_ns - best[NOTHING]:16}")


def time_drain(flows: int, rounds: int) -> None:
    engine = counts.KernelCounts.open(entries=4 * flows)
    side = KernelSide(engine, 1)
    drains: dict[str, Callable[[], Counted | list[FlowCount]]] = {
        "new": side.drain, "known": side.drain, "known, read only": engine.drain,
    }  # fmt: skip
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in drains}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("lo", 0))
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as packets:
            packets.bind(("lo", 0))
            side.attach(packets.fileno(), socket.if_nametoindex("lo"), "lo", loopback=True)
            for number in range(rounds):
                sent = [
                    frames.udp_frame(
                        f"10.{number}.{flow >> 8 & 255}.{flow & 255}", 1 + (flow >> 16), THERE, 2
                    )
                    for flow in range(flows)
                ]
                for name, drain in drains.items():
                    for frame in sent:
                        sender.send(frame)
                    cpu_s, wall_s = time.thread_time(), time.monotonic()
                    drained = drain()
                    cpu_s, wall_s = time.thread_time() - cpu_s, time.monotonic() - wall_s
                    assert entries(drained) >= 2 * flows, name
                    took[name].append((cpu_s, wall_s))
                    del drained
    engine.close()
    print(f"\n{'flows drained':24} {'CPU, ms':>16} {'median':>8} {'whole, ms':>12} {'median':>8}")
    for name, each in took.items():
        cpu_ms, wall_ms = ([1e3 * s for s in of_rounds] for of_rounds in zip(*each, strict=True))
        print(
            f"{2 * flows:<7} {name:16} {min(cpu_ms):16.0f} {median(cpu_ms):8.0f}"
            f" {min(wall_ms):12.0f} {median(wall_ms):8.0f}"
        )


def entries(drained: Counted | list[FlowCount]) -> int:
    if isinstance(drained, Counted):
        return sum(number for number, _ in drained.batches)
    return len(drained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=200_000)
    parser.add_argument("--flows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    time_program(options.repeat, options.rounds)
    time_drain(options.flows, options.rounds)


if __name__ == "__main__":
    main()
