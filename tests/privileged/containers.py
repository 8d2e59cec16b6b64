"""Namespaces behind the laboratory's host, as containers are: a cable each, routes, and NAT.

    with Lab() as lab, Containers(lab) as containers:
        one = containers.add()
        one.traffic("udp-client", address=lab.peer.ipv4, …)   # leaves the host as the host's

The host masquerades what leaves by the laboratory's cable, and forwards. The second witness stands
at its far end, so it tells what is on the wire: tuples as they are after the translation.
"""

from __future__ import annotations

import contextlib

from tests.privileged.lab import DEVICE, MTU_BYTES, Lab
from tests.privileged.namespace import Namespace, run

_INSIDE = "eth0"

_RULES = f"""
table inet nat {{
    chain publish {{
        type nat hook prerouting priority dstnat
    }}
    chain hide {{
        type nat hook postrouting priority srcnat
        oifname "{DEVICE}" masquerade
    }}
}}
"""

# Reports of multicast groups that the kernel sends by itself.
_SILENCE = """
table netdev silence_{device} {{
    chain out {{
        type filter hook egress device {device} priority -300;
        icmpv6 type {{ 131, 132, 133, 143 }} drop
    }}
}}
"""


class Containers:
    """Makes them behind ``lab.host``; what was made goes away with the ``with``."""

    def __init__(self, lab: Lab, *, masquerade: bool = True) -> None:
        self._lab = lab
        self._masquerade = masquerade
        self._number = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Containers:
        host = self._lab.host
        host.run(
            ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"],
        )
        if self._masquerade:
            host.run(["nft", "-f", "-"], stdin=_RULES)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def add(self) -> Namespace:
        """One more, with an address of its own (``ipv4``, ``ipv6``) and a way to the peer."""
        self._number += 1
        made = self._stack.enter_context(Namespace(f"c{self._number}"))
        host, device = self._lab.host, f"c{self._number}"
        ends = f"link add {device} netns {host.name} mtu {MTU_BYTES} type veth"
        run(["ip", *ends.split(), *f"peer name {_INSIDE} netns {made.name}".split()])
        ipv4, ipv6 = f"10.204.{self._number}", f"fd00:204:{self._number}:"
        made.ipv4, made.ipv6 = f"{ipv4}.2", f"{ipv6}:2"
        for end, name, number in ((host, device, 1), (made, _INSIDE, 2)):
            features = ["tso", "off", "gro", "off", "tx-udp-segmentation", "off"]
            end.run(["ethtool", "-K", name, *features])
            commands = [
                f"link set {name} addrgenmode none",
                f"addr add {ipv4}.{number}/24 dev {name}",
                f"addr add {ipv6}:{number}/64 dev {name} nodad",
                f"link set {name} address {_mac(self._number, number)} up",
                # Without a link-local address nobody is asked for his.
                f"neigh add {ipv4}.{3 - number} lladdr {_mac(self._number, 3 - number)} dev {name}",
                f"neigh add {ipv6}:{3 - number} lladdr {_mac(self._number, 3 - number)} dev {name}",
            ]
            end.run(["ip", "-batch", "-"], stdin="\n".join(commands))
            end.run(["nft", "-f", "-"], stdin=_SILENCE.format(device=name))
            end.run(["sh", "-c", f"echo 1 > /sys/class/net/{name}/queues/rx-0/rps_cpus"])
        routes = [f"route add default via {ipv4}.1", f"-6 route add default via {ipv6}:1"]
        for route in routes:
            made.run(["ip", *route.split()])
        return made

    def publish(self, protocol: str, port: int, to: Namespace, its_port: int) -> None:
        """The host's port is the container's from now on, for whoever comes by the cable."""
        for family, address in (("ipv4", to.ipv4), ("ipv6", f"[{to.ipv6}]")):
            rule = (
                f'iifname "{DEVICE}" meta nfproto {family} {protocol} dport {port}'
                f" dnat {'ip' if family == 'ipv4' else 'ip6'} to {address}:{its_port}"
            )
            self._lab.host.run(["nft", "add", "rule", "inet", "nat", "publish", *rule.split()])


def _mac(container: int, number: int) -> str:
    return f"02:00:00:00:{container:02x}:{number:02x}"
