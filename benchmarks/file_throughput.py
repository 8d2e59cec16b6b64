"""How many packets a second does the python engine count from a file, and what does pypcap take?

    python benchmarks/file_throughput.py [--packets 1000000] [--flows 101] [--rounds 5]

Writes a capture of TCP and UDP over IPv4 and IPv6 to a temporary file, then reads it on one core:
with an empty callback (what dispatching itself costs), with ``Counter.add``, and with
``dpkt.pcap.Reader`` parsing each frame by dpkt (what a plain script does). Once with flows that are
busy, so that many packets make a run, and once with a pause before each packet of a flow, so that
each is a run of its own: the two ends of what a network does. The best of the rounds,
which are interleaved; the figures of other machines differ, the ratios much less.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import dpkt

from procnet.capture.counter import Counter
from procnet.capture.handle import FileHandle
from procnet.testing import frames

DPKT_SHARE = 20
"""dpkt reads only one in so many packets, or the benchmark would take minutes."""


BUSY_S = 0.000_000_1
SLOW_S = 0.000_01


def build(path: str, packets: int, flows: int, interval_s: float = BUSY_S) -> None:
    chooser = random.Random(23)
    templates = []
    for flow in range(flows):
        ends = ("10.0.0.1", 1024 + flow, f"10.0.{flow // 251}.{2 + flow % 251}", 443)
        if flow % 5 == 4:
            ends = ("fd00::1", 1024 + flow, f"fd00::{2 + flow:x}", 443)
        build_frame = frames.udp_frame if flow % 3 == 2 else frames.tcp_frame
        payload = bytes(chooser.choice((0, 23, 101, 997)))
        templates.append(build_frame(*ends, payload))
        templates.append(build_frame(*ends[2:], *ends[:2], payload))
    chosen = chooser.choices(templates, k=packets)
    frames.write_pcap(path, chosen, snaplen=256, interval_s=interval_s)


def through(path: str, callback: Callable[[float, bytes], object]) -> int:
    count = 0
    with FileHandle(path) as handle:
        while batch := handle.read(callback):
            count += batch
    return count


def bare(path: str) -> int:
    return through(path, lambda timestamp, frame: None)


def counted(path: str) -> int:
    counter = Counter("file", 1, 0, offline=True)
    packets = through(path, counter.add)
    assert sum(count.packets for count in counter.drain()) == packets
    return packets


def parsed_by_dpkt(path: str) -> int:
    flows: dict[tuple[bytes, bytes, int, int], int] = {}
    packets = 0
    with open(path, "rb") as file:
        for _, frame in dpkt.pcap.Reader(file):
            ip = dpkt.ethernet.Ethernet(frame).data
            if isinstance(ip.data, (dpkt.tcp.TCP, dpkt.udp.UDP)):
                ends = (ip.src, ip.dst, ip.data.sport, ip.data.dport)
                flows[ends] = flows.get(ends, 0) + len(ip)
            packets += 1
    return packets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--flows", type=int, default=101)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        large, slow, small = (os.path.join(directory, name) for name in ("large", "slow", "small"))
        build(slow, options.packets, options.flows, SLOW_S)
        build(large, options.packets, options.flows)
        build(small, options.packets // DPKT_SHARE, options.flows)
        work = {"empty callback": (bare, large), "procnet": (counted, large),
                "procnet, slow flows": (counted, slow),
                "dpkt.pcap + dpkt": (parsed_by_dpkt, small)}  # fmt: skip
        best = dict.fromkeys(work, float("inf"))
        for _ in range(options.rounds):
            for name, (read, path) in work.items():
                started = time.process_time()
                packets = read(path)
                best[name] = min(best[name], (time.process_time() - started) / packets)
    print(f"{'reader':20} {'ns/packet':>10} {'packets/s':>12} {'x procnet':>10}")
    for name, seconds in best.items():
        ratio = seconds / best["procnet"]
        print(f"{name:20} {seconds * 1e9:10.0f} {1 / seconds:12,.0f} {ratio:10.2f}")


if __name__ == "__main__":
    main()
