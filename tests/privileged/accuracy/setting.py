"""Where the scenes of tests/workloads/scenarios.py are played: the laboratory, and more cables.

On the host's side, each with a second witness at its far end:

lab0    the laboratory's cable
tag0    a cable whose frames have a VLAN tag
tun0    a device without a link header
lo      loopback; the witness is on the device itself

A third namespace is behind the host, which takes its address for its own (masquerade).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.privileged import witness
from tests.privileged.lab import DEVICE, MTU_BYTES, Count, Lab, LabError
from tests.privileged.namespace import TOP, WAIT_S, Namespace, run, wait_until
from tests.workloads.scene import HOST, INNER, PEER, V6_OTHER, World

WORKLOADS = TOP / "tests" / "workloads"
TAG, TUN, LOOPBACK, BEHIND = "tag0", "tun0", "lo", "nat0"
_NETWORKS = {"tag": "10.206.0", "tun": "10.207.0", "inner": "10.205.0"}
_NO_OFFLOAD = ["tso", "off", "gso", "off", "gro", "off", "tx-udp-segmentation", "off"]


class Leg(NamedTuple):
    """One direction of a flow on a device."""

    device: str
    protocol: str
    source: tuple[str, int]
    target: tuple[str, int]


class Programs(NamedTuple):
    """What is compiled for the scenes."""

    calls: Path
    short_lived: Path
    tag: Path


def compiled(directory: Path) -> Programs:
    made = Programs(directory / "calls.so", directory / "short-lived", directory / "tag.bpf.o")
    gcc = ["gcc", "-O2", "-Wall", "-Werror"]
    run([*gcc, "-shared", "-fPIC", "-o", str(made.calls), str(WORKLOADS / "calls.c")])
    run([*gcc, "-static", "-o", str(made.short_lived), str(WORKLOADS / "short_lived.c")])
    target = run(["gcc", "-print-multiarch"]).strip()
    run(["clang", "-target", "bpf", "-O2", "-g", f"-I/usr/include/{target}", "-c",
         str(WORKLOADS / "tag.bpf.c"), "-o", str(made.tag)])  # fmt: skip
    return made


class Setting:
    """Lives as long as the ``with``."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs
        self.lab = Lab()
        self.host, self.peer, self.inner = self.lab.host, self.lab.peer, Namespace("inner")
        self.missing: dict[str, str] = {}
        """What this kernel has not, as trying has shown."""
        self._tables = [
            (LOOPBACK, self.host, "witness", 0),
            (DEVICE, self.peer, "witness", witness.ETHERNET_HEADER_BYTES),
        ]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Setting:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.lab)
            stack.enter_context(self.inner)
            for each in (self.host, self.peer, self.inner):
                self._prepare_loopback(each)
            self.host.run(["nft", "-f", "-"], stdin=witness.loopback_rules())
            self._try("tag", self._lay_tagged_cable, TAG)
            self._try("tun", self._lay_tunnel, TUN)
            self._try("inner", self._put_behind)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @property
    def devices(self) -> list[str]:
        """Those that are watched."""
        return [device for device, *_ in self._tables]

    def world(self, dwell_s: float) -> str:
        """For scenarios.py."""
        places = {HOST: self.host, PEER: self.peer, INNER: self.inner}
        addresses = {
            "cable4": {HOST: self.host.ipv4, PEER: self.peer.ipv4},
            "cable6": {HOST: self.host.ipv6, PEER: self.peer.ipv6},
            "tag": {HOST: _address("tag", 1), PEER: _address("tag", 2)},
            "tun": {HOST: _address("tun", 1), PEER: _address("tun", 2)},
            "inner": {INNER: _address("inner", 2)},
        }
        mac = self.host.run(["cat", f"/sys/class/net/{DEVICE}/address"]).strip()
        paths = {name: str(place.path) for name, place in places.items()}
        program = str(self.programs.short_lived)
        world = World(paths, addresses, DEVICE, mac, program, self.missing, dwell_s)
        return json.dumps(world._asdict())

    def legs(self) -> dict[Leg, Count]:
        """What the second witness has seen by now."""
        found: dict[Leg, Count] = {}
        for device, where, table, link_header_bytes in self._tables:
            listing = where.run(["nft", "-jn", "list", "table", "netdev", table])
            for flow, wire in witness.read(listing, link_header_bytes).items():
                near = flow.host_address, flow.host_port
                far = flow.peer_address, flow.peer_port
                for leg, count in (
                    (Leg(device, flow.protocol, near, far), wire.sent),
                    (Leg(device, flow.protocol, far, near), wire.received),
                ):
                    if count.packets:
                        found[leg] = found.get(leg, Count(0, 0)) + count
        return found

    def settle(self) -> dict[Leg, Count]:
        """Waits until the witness has seen nothing for a while; what it has seen."""
        seen = [self.legs()]
        quiet_polls = [0]

        def is_quiet() -> bool:
            now = self.legs()
            quiet_polls[0] = quiet_polls[0] + 1 if now == seen[0] else 0
            seen[0] = now
            return quiet_polls[0] >= 3

        wait_until(is_quiet, "quiet devices", 3 * WAIT_S)
        return seen[0]

    def _try(self, what: str, lay: Callable[[], None], device: str = "") -> None:
        try:
            lay()
        except LabError as error:
            self.missing[what] = str(error)
            return
        if device:
            self.peer.run(["nft", "-f", "-"], stdin=witness.rules(device, device))
            header_bytes = 0 if device == TUN else witness.ETHERNET_HEADER_BYTES
            self._tables.append((device, self.peer, device, header_bytes))

    def _prepare_loopback(self, place: Namespace) -> None:
        # As on a cable: datagrams are fragmented, and no packet is larger than the MTU.
        place.run(["ip", "link", "set", "lo", "mtu", str(MTU_BYTES)])
        place.run(["ethtool", "-K", "lo", *_NO_OFFLOAD])
        self._without_large_packets("lo", place)
        place.run(["ip", "addr", "add", f"{V6_OTHER}/128", "dev", "lo", "nodad"])
        place.run(["sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"])

    def _lay_tagged_cable(self) -> None:
        self._lay(TAG, self.host, self.peer, "tag")
        for place in (self.host, self.peer):
            place.run(["tc", "qdisc", "add", "dev", TAG, "clsact"])
            for hook, section in (("egress", "leaves"), ("ingress", "comes")):
                program = ["object-file", str(self.programs.tag), "section", section]
                place.run(
                    ["tc", "filter", "add", "dev", TAG, hook, "bpf", "direct-action", *program]
                )

    def _lay_tunnel(self) -> None:
        if not Path("/dev/net/tun").exists():
            run(["modprobe", "tun"])
        argv = [sys.executable, "-S", "-E", str(WORKLOADS / "relay.py"), TUN]
        relay = self.peer.popen(
            [*argv, str(self.host.path), str(self.peer.path)], stdout=subprocess.PIPE, text=True
        )
        if relay.stdout.readline() != "ready\n":
            raise LabError("no tun device can be opened")
        for number, place in enumerate((self.host, self.peer), start=1):
            self._raise(TUN, place, f"{_address('tun', number)}/24")
        self._without_large_packets(TUN, self.peer)

    def _put_behind(self) -> None:
        self._lay(BEHIND, self.host, self.inner, "inner")
        self.inner.run(["ip", "route", "add", "default", "via", _address("inner", 1)])
        self.host.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        self.host.run(["nft", "-f", "-"], stdin=_MASQUERADE)

    def _lay(self, device: str, one: Namespace, other: Namespace, network: str) -> None:
        """A cable like the laboratory's: no large packets on it, nor behind its far end."""
        ends = f"{device} netns {one.name} type veth peer name {device} netns {other.name}"
        run(["ip", "link", "add", *ends.split()])
        for number, place in enumerate((one, other), start=1):
            place.run(["ethtool", "-K", device, *_NO_OFFLOAD])
            self._raise(device, place, f"{_address(network, number)}/24")
            place.run(["sh", "-c", f"echo 1 > /sys/class/net/{device}/queues/rx-0/rps_cpus"])
        self._without_large_packets(device, other)
        for number, (place, far) in enumerate(((one, other), (other, one)), start=1):
            mac = far.run(["cat", f"/sys/class/net/{device}/address"]).strip()
            neighbour = f"neigh add {_address(network, 3 - number)} lladdr {mac} dev {device}"
            place.run(["ip", *neighbour.split()])

    @staticmethod
    def _without_large_packets(device: str, place: Namespace) -> None:
        """Not even above the device: the witness counts before they are cut up."""
        place.run(["ethtool", "-K", device, "gso", "off"])
        place.run(["ip", "link", "set", device, "gso_max_segs", "1"])

    @staticmethod
    def _raise(device: str, place: Namespace, address: str) -> None:
        commands = [
            f"link set {device} addrgenmode none multicast off",
            f"addr add {address} dev {device}",
            f"link set {device} up",
        ]
        place.run(["ip", "-batch", "-"], stdin="\n".join(commands))


def _address(network: str, number: int) -> str:
    return f"{_NETWORKS[network]}.{number}"


_MASQUERADE = f"""
table ip nat {{
    chain out {{
        type nat hook postrouting priority 100;
        oifname "{DEVICE}" ip saddr {_NETWORKS["inner"]}.0/24 masquerade
    }}
}}
"""
