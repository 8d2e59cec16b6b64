"""What IP protocols are called in a report."""

from __future__ import annotations

from procnet.model import ICMP, ICMP6, SCTP, TCP, UDP, UDPLITE

_PROTOCOL_NAMES = {
    ICMP: "icmp", 2: "igmp", 4: "ipip", TCP: "tcp", UDP: "udp", 41: "ipv6", 47: "gre", 50: "esp",
    51: "ah", ICMP6: "icmp6", 89: "ospf", SCTP: "sctp", UDPLITE: "udplite",
}  # fmt: skip


def protocol_name(number: int) -> str:
    """The lower-case name of an IP protocol (``tcp``), or ``ip-253`` for one without."""
    return _PROTOCOL_NAMES.get(number) or f"ip-{number}"
