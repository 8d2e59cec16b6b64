"""How long does decoding a frame take, by struct and by dpkt?

    python benchmarks/decode.py [--rounds 7]

For each kind of frame: the time of ``Decoder.decode`` (struct where it can), of
``Decoder.decode_completely`` (dpkt's headers, no more than is needed), and of dpkt parsing all that
it knows, as ``dpkt.ethernet.Ethernet(frame)``. The best of the rounds, in ns of CPU time.
"""

from __future__ import annotations

import argparse
import os
import sys
import timeit

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import dpkt

from procnet.capture.decode import Decoder
from procnet.model import TCP, UDP
from procnet.testing import frames

CALLS = 20_000


def samples() -> dict[str, bytes]:
    segment = frames.tcp(bytes(101), 40000, 443)
    datagram = frames.udp(bytes(101), 40000, 53)
    plain = frames.ipv4(segment, "10.0.0.1", "10.0.0.2", TCP)
    extended = frames.ipv6_extension(datagram, UDP)
    return {
        "IPv4 TCP": frames.ethernet(plain),
        "IPv6 UDP": frames.udp_frame("fd00::1", 40000, "fd00::2", 53, bytes(101)),
        "IPv4 ICMP echo": frames.echo_frame("10.0.0.1", "10.0.0.2", 7, bytes(53)),
        "one VLAN tag": frames.ethernet(frames.vlan(plain, 5), ethertype=0x8100),
        "IPv4 options": frames.ethernet(
            frames.ipv4(segment, "10.0.0.1", "10.0.0.2", TCP, options=b"\1" * 8)
        ),
        "IPv6 hop-by-hop": frames.ethernet(frames.ipv6(extended, "fd00::1", "fd00::2", 0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    decoder = Decoder(1)
    print(f"{'frame':16} {'decode ns':>10} {'complete ns':>12} {'dpkt ns':>10} {'dpkt/decode':>12}")
    for name, frame in samples().items():
        best = [
            min(timeit.repeat(lambda work=work, frame=frame: work(frame), number=CALLS,
                              repeat=rounds)) / CALLS * 1e9
            for work in (decoder.decode, decoder.decode_completely, dpkt.ethernet.Ethernet)
        ]  # fmt: skip
        quick, complete, full = best
        print(f"{name:16} {quick:10.0f} {complete:12.0f} {full:10.0f} {full / quick:12.1f}")


if __name__ == "__main__":
    main()
