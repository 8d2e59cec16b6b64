"""The second witness: nftables, counting on the peer's end of the cable.

It counts on the netdev hooks; ``inet`` hooks would see packets reassembled. A counter adds the
length of the socket buffer, and that is not the same at both hooks: at ingress the Ethernet header
is pulled off already and these are IP bytes; at egress it is in front, 14 bytes a packet, which are
subtracted here (test_lab.py holds both against arithmetic). A large packet that the kernel has yet
to cut up counts once, at its full length, without the headers of its segments.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

ETHERNET_HEADER_BYTES = 14
PROTOCOLS = {1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp", 136: "udplite"}
"""procnet's names. nftables is asked for numbers: its names hang on /etc/protocols."""


class Count(NamedTuple):
    """Packets, and their IP bytes with all headers from IP up."""

    packets: int
    wire_bytes: int

    def __add__(self, other: object) -> Count:
        if not isinstance(other, Count):
            return NotImplemented
        return Count(self.packets + other.packets, self.wire_bytes + other.wire_bytes)


NOTHING = Count(0, 0)


class Wire(NamedTuple):
    """What crossed the cable, seen from the host."""

    sent: Count
    received: Count


class WireFlow(NamedTuple):
    """A row of the second witness, seen from the host. Ports are 0 where there are none.

    TCP, UDP, UDP-Lite and SCTP are counted by ports; of other protocols, and of the later fragments
    of a datagram, only addresses and protocol are known.
    """

    protocol: str
    host_address: str
    host_port: int
    peer_address: str
    peer_port: int


def rules(device: str, name: str = "witness") -> str:
    """The nftables script that sets the witness on a device."""
    sent, received = _direction("sent", "ingress", device), _direction("received", "egress", device)
    return f"table netdev {name} {{\n{sent}\n{received}\n}}"


def loopback_rules() -> str:
    """The same for the loopback device: there what comes is what was sent, and is told as that."""
    return f"table netdev witness {{\n{_direction('sent', 'ingress', 'lo')}\n}}"


def read(listing: str, link_header_bytes: int = ETHERNET_HEADER_BYTES) -> dict[WireFlow, Wire]:
    """What ``nft -jn list table netdev NAME`` told, by flow."""
    counts: dict[str, dict[WireFlow, Count]] = {"sent": {}, "received": {}}
    for entry in json.loads(listing)["nftables"]:
        if "set" in entry:
            name = entry["set"]["name"]
            direction = "sent" if name.startswith("sent") else "received"
            for element in entry["set"].get("elem", []):
                flow, count = _row(element["elem"], direction, link_header_bytes)
                counts[direction][flow] = counts[direction].get(flow, NOTHING) + count
    sent, received = counts["sent"], counts["received"]
    return {
        flow: Wire(sent.get(flow, NOTHING), received.get(flow, NOTHING))
        for flow in sent.keys() | received.keys()
    }


def _row(element: dict[str, Any], direction: str, link_header_bytes: int) -> tuple[WireFlow, Count]:
    """(source, port, destination, port, protocol) or, without the ports, the three that remain."""
    fields = element["val"]["concat"]
    if len(fields) == 3:
        source, destination, protocol = fields
        fields = [source, 0, destination, 0, protocol]
    source, source_port, destination, destination_port, protocol = fields
    protocol = PROTOCOLS.get(int(protocol), f"ip-{protocol}")
    packets, wire_bytes = element["counter"]["packets"], element["counter"]["bytes"]
    if direction == "sent":
        flow = WireFlow(protocol, source, source_port, destination, destination_port)
        return flow, Count(packets, wire_bytes)
    flow = WireFlow(protocol, destination, destination_port, source, source_port)
    return flow, Count(packets, wire_bytes - link_header_bytes * packets)


def _direction(name: str, hook: str, device: str) -> str:
    """The sets and the chain that count one direction."""
    sets, rules = [], []
    for version, ip in ((4, "ip"), (6, "ip6")):
        ports = f"{ip} saddr . th sport . {ip} daddr . th dport . meta l4proto"
        hosts = f"{ip} saddr . {ip} daddr . meta l4proto"
        sets += [
            f"set {name}{version} {{ typeof {ports}; flags dynamic; counter; size 65535; }}",
            f"set {name}{version}other {{ typeof {hosts}; flags dynamic; counter; size 4096; }}",
        ]
        rules += [
            # A later fragment has no transport header: `th` does not match and the next rule does.
            f"meta protocol {ip} meta l4proto {{ tcp, udp, udplite, sctp }} "
            f"update @{name}{version} {{ {ports} counter }} accept",
            f"meta protocol {ip} update @{name}{version}other {{ {hosts} counter }} accept",
        ]
    chain = f"chain {name} {{ type filter hook {hook} device {device} priority 0;"
    return "\n".join([*sets, chain, *rules, "}"])
