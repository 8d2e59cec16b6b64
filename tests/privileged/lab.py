"""A network of our own to measure in: namespaces, a cable between them, and a second witness.

    with Lab() as lab:
        server = lab.peer.traffic("tcp-server", address=lab.peer.ipv4, expect=1_000_003)
        ...
        lab.wire("tcp", peer_port=server.port)    # what nftables counted

``host`` is where procnet is put to the test, ``peer`` is the rest of the world. Neither has a way
out: traffic never leaves the two namespaces, and all that was made goes away with the ``with``.

What makes the truth exact, each found the hard way:

* TCP segmentation offload and receive offload are off at both ends, so what crosses the cable is
  no larger than its MTU. The host keeps software segmentation: hooks above its device see large
  packets and a tap on the device sees the wire's, as with a plain network card. The peer has none
  at all (and gso_max_segs 1), because nftables counts its egress before segmentation.
* Neighbours are static, addresses skip duplicate detection, there are no link-local addresses, and
  the kernel's own multicast reports and router solicitations are dropped before they reach a tap:
  nothing is on the cable that no test has sent.
* Each end handles what it receives on one CPU (RPS), or packets overtake each other on the cable
  and TCP retransmits; netdev_max_backlog is raised, or the cable drops under a burst.
* TCP is patient (namespace.py): a machine that is busy is no reason to send a packet twice.
* nftables counts on the peer's device (witness.py).
"""

from __future__ import annotations

import contextlib
import ipaddress
import time

from tests.privileged import witness
from tests.privileged.namespace import TOP, LabError, Namespace, Traffic, run, wait_until
from tests.privileged.witness import Count, Wire, WireFlow

__all__ = [
    "DEVICE",
    "MTU_BYTES",
    "TOP",
    "Count",
    "Lab",
    "LabError",
    "Namespace",
    "Traffic",
    "Wire",
    "WireFlow",
    "run",
    "wait_until",
]

DEVICE = "lab0"
"""The name of the cable's device at either end."""
MTU_BYTES = 1500
SETTLED_S = 0.2


class Lab:
    """Two namespaces, ``host`` and ``peer``, and a cable between them.

    ``subnet`` (0-255) chooses the addresses, 10.203.SUBNET.1 and fd00:203:SUBNET::1 for the host,
    the same with .2 and ::2 for the peer: two laboratories with the same one have the same
    five-tuples in different namespaces. ``offload`` leaves segmentation offload on: large packets
    cross the cable then, and the second witness counts them without the headers of their segments.
    """

    def __init__(self, *, subnet: int = 0, offload: bool = False) -> None:
        self.host = Namespace("host")
        self.peer = Namespace("peer")
        self.device = DEVICE
        self._subnet = subnet
        self._offload = offload
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.host)
            stack.enter_context(self.peer)
            self._lay_cable()
            self.peer.run(["nft", "-f", "-"], stdin=witness.rules(DEVICE))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def wire_flows(self) -> dict[WireFlow, Wire]:
        """Everything that crossed the cable so far, by five-tuple."""
        return witness.read(self.peer.run(["nft", "-jn", "list", "table", "netdev", "witness"]))

    def wire(
        self,
        protocol: str | None = None,
        *,
        host_port: int | None = None,
        peer_port: int | None = None,
        version: int | None = None,
    ) -> Wire:
        """The sum over the flows that match. ``version`` is 4 or 6."""
        sent = received = Count(0, 0)
        for flow, wire in self.wire_flows().items():
            if (
                protocol in (None, flow.protocol)
                and host_port in (None, flow.host_port)
                and peer_port in (None, flow.peer_port)
                and version in (None, 6 if ":" in flow.host_address else 4)
            ):
                sent += wire.sent
                received += wire.received
        return Wire(sent, received)

    def settle(self, timeout_s: float = 20.0) -> Wire:
        """Waits until nothing has crossed the cable for 0.2 s; the sum of what has.

        For the end of a test: the closing handshake is the kernel's and takes no one's time.
        """
        seen = [self.wire()]
        since = [time.monotonic()]

        def is_quiet() -> bool:
            now = self.wire()
            if now != seen[0]:
                seen[0], since[0] = now, time.monotonic()
            return time.monotonic() - since[0] >= SETTLED_S

        wait_until(is_quiet, "a quiet cable", timeout_s)
        return seen[0]

    def _lay_cable(self) -> None:
        host_end = f"{DEVICE} netns {self.host.name} address {_mac(1)} mtu {MTU_BYTES}"
        peer_end = f"{DEVICE} netns {self.peer.name} address {_mac(2)} mtu {MTU_BYTES}"
        run(f"ip link add {host_end} type veth peer name {peer_end}".split())
        for number, (end, other) in enumerate([(self.host, 2), (self.peer, 1)], start=1):
            end.ipv4, end.ipv6 = self._address(4, number), self._address(6, number)
            if not self._offload:
                features = ["tso", "off", "gro", "off", "tx-udp-segmentation", "off"]
                if end is self.peer:
                    features += ["gso", "off"]
                end.run(["ethtool", "-K", DEVICE, *features])
            commands = [
                f"link set {DEVICE} addrgenmode none",
                f"addr add {end.ipv4}/24 dev {DEVICE}",
                f"addr add {end.ipv6}/64 dev {DEVICE} nodad",
                f"neigh add {self._address(4, other)} lladdr {_mac(other)} dev {DEVICE}",
                f"neigh add {self._address(6, other)} lladdr {_mac(other)} dev {DEVICE}",
            ]
            if end is self.peer and not self._offload:
                commands.append(f"link set {DEVICE} gso_max_segs 1")
            end.run(["ip", "-batch", "-"], stdin="\n".join(commands))
            end.run(["nft", "-f", "-"], stdin=_SILENCE)
            end.run(["sh", "-c", f"echo 1 > /sys/class/net/{DEVICE}/queues/rx-0/rps_cpus"])
        for end in (self.host, self.peer):
            end.run(["ip", "link", "set", DEVICE, "up"])

    def _address(self, version: int, number: int) -> str:
        if version == 4:
            return f"10.203.{self._subnet}.{number}"
        return str(ipaddress.ip_address(f"fd00:203:{self._subnet:x}::{number}"))


def _mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


# Reports of multicast groups and router solicitations that the kernel sends by itself.
_SILENCE = f"""
table netdev silence {{
    chain out {{
        type filter hook egress device {DEVICE} priority -300;
        icmpv6 type {{ 131, 132, 133, 143 }} drop
    }}
}}
"""
