"""Counting in the kernel: the same numbers as in Python, each packet once, nothing left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter as Multiset
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procnet.bpf.counts import KernelCounts
from procnet.capture.interfaces import list_interfaces
from procnet.capture.tap import Tap
from procnet.errors import CaptureError, LoadError
from procnet.model import TCP, UDP, Features, FlowCount, Reason, Support
from procnet.monitor import Monitor
from procnet.report.report import NOTHING
from procnet.testing.frames import (
    ACK,
    SYN,
    arp,
    echo_frame,
    ethernet,
    fragments,
    icmp_unreachable,
    ipv4,
    ipv6,
    ipv6_authentication,
    ipv6_extension,
    ipv6_fragment,
    tcp,
    tcp_frame,
    udp,
    udp_frame,
    vlan,
)
from tests.privileged.backlog import raised_backlog
from tests.privileged.namespace import TOP, Namespace
from tests.privileged.space import Space, lay_cable, wait_for

pytestmark = pytest.mark.privileged

HERE, THERE, ELSEWHERE = "10.9.0.1", "10.9.0.2", "10.9.0.3"
HERE6, THERE6 = "fd09::1", "fd09::2"
TAGGED, STACKED, STACKED_BEFORE = 0x8100, 0x88A8, 0x9100


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space()
    try:
        lay_cable(made)
        made.ip("address", "add", f"{HERE6}/64", "dev", "near", "nodad")
        yield made
    finally:
        made.close()


def good_frames(here: str, there: str, here6: str, there6: str) -> list[bytes]:
    """What a program in the kernel should understand, from here to there."""
    v4 = udp_frame(here, 5000, there, 53, b"x" * 11)[14:]
    v6 = udp_frame(here6, 5000, there6, 53, b"x" * 11)[14:]
    datagram = udp(b"y" * 33, 6000, 7000)
    frames = [
        tcp_frame(here, 4000, there, 80, flags=SYN),
        tcp_frame(here, 4000, there, 80, b"a" * 100),
        tcp_frame(here, 4000, there, 80, b"b"),
        tcp_frame(here, 4000, there, 80, flags=SYN | ACK),
        tcp_frame(here, 4000, there, 80, flags=SYN),
        tcp_frame(here6, 4000, there6, 80, flags=SYN),
        tcp_frame(here6, 4000, there6, 80, b"c" * 99),
        ethernet(ipv4(tcp(b"d" * 9, 1, 2, options=b"\1" * 12), here, there, TCP)),
        ethernet(ipv4(tcp(b"d" * 9, 1, 2), here, there, TCP, options=b"\1" * 40)),
        ethernet(ipv4(datagram, here, there, UDP, options=b"\1" * 4)),
        udp_frame(here, 1, there, 2),
        udp_frame(here6, 1, there6, 2),
        udp_frame(here, 1, there, 2, b"z"),
        udp_frame("::ffff:1.2.3.4", 9, "::ffff:4.3.2.1", 9, b"mapped"),
        echo_frame(here, there, 77, b"ping"),
        echo_frame(there, here, 77, b"ping", reply=True),
        echo_frame(here6, there6, 78),
        echo_frame(here6, there6, 78, b"pong", reply=True),
        ethernet(ipv4(icmp_unreachable(v4), here, there, 1)),
        ethernet(ipv6(icmp_unreachable(v6, version=6), here6, there6, 58)),
        ethernet(ipv4(b"", here, there, 132)),
        ethernet(ipv4(b"e" * 3, here, there, 253)),
        ethernet(ipv6(b"", here6, there6, 59)),
        ethernet(ipv6(b"f" * 21, here6, there6, 47)),
        ethernet(ipv4(datagram, here, there, 136)),
        ethernet(vlan(v4, 5), ethertype=TAGGED),
        ethernet(vlan(v6, 5), ethertype=TAGGED),
        ethernet(vlan(vlan(v4, 6), 7, ethertype=TAGGED), ethertype=STACKED),
        ethernet(vlan(vlan(v6, 6), 7, ethertype=TAGGED), ethertype=TAGGED),
        ethernet(vlan(vlan(v4, 6), 7, ethertype=TAGGED), ethertype=STACKED_BEFORE),
        ethernet(ipv6(ipv6_extension(datagram, UDP), here6, there6, 0)),
        ethernet(ipv6(ipv6_extension(ipv6_extension(datagram, UDP), 60), here6, there6, 43)),
        ethernet(ipv6(ipv6_authentication(datagram, UDP), here6, there6, 51)),
        ethernet(ipv6(ipv6_extension(datagram, UDP, body=bytes(46)), here6, there6, 60)),
        ethernet(ipv6(
            ipv6_fragment(datagram, UDP, offset=0, more_fragments=False, identification=1),
            here6, there6, 44,
        )),
        udp_frame(here, 68, "255.255.255.255", 67, b"dhcp"),
        udp_frame("0.0.0.0", 68, "255.255.255.255", 67, b"dhcp"),
        udp_frame(ELSEWHERE, 68, "239.1.1.1", 67, b"group"),
        udp_frame(ELSEWHERE, 1, "10.9.0.4", 2, b"passed on"),
    ]  # fmt: skip
    return frames


def odd_frames(here: str, there: str, here6: str, there6: str) -> list[bytes]:
    """What it hands up: fragments, damage, what is no IP."""
    datagram = udp(b"y" * 33, 6000, 7000)
    nested = datagram
    for _ in range(12):
        nested = ipv6_extension(nested, UDP if nested is datagram else 60)
    stacked = vlan(udp_frame(here, 1, there, 2)[14:], 1)
    for _ in range(6):
        stacked = vlan(stacked, 1, ethertype=TAGGED)
    return [
        *map(ethernet, fragments(udp(b"z" * 500, 8, 9), here, there, UDP, identification=1,
                                 size=200)),
        *map(ethernet, fragments(udp(b"z" * 500, 8, 9), here6, there6, UDP, identification=1,
                                 size=200)),
        ethernet(arp(here, there), ethertype=0x0806),
        ethernet(b"\x42" * 60, ethertype=60),
        ethernet(b"", ethertype=0x0800),
        ethernet(ipv4(datagram, here, there, UDP)[:19]),
        ethernet(ipv4(datagram, here, there, UDP)[:25]),
        ethernet(ipv4(datagram, here, there, UDP, total_length=19)),
        ethernet(ipv4(datagram, here, there, UDP, total_length=27)),
        ethernet(ipv4(datagram, here, there, UDP, total_length=0)),
        ethernet(ipv4(datagram, here, there, UDP, total_length=9000)),
        ethernet(ipv4(tcp(b"", 1, 2)[:12] + b"\x10" + bytes(7), here, there, TCP)),
        ethernet(ipv4(datagram[:4], here, there, UDP)),
        ethernet(ipv6(datagram, here6, there6, UDP, payload_length=0)),
        ethernet(ipv6(datagram, here6, there6, UDP, payload_length=3)),
        ethernet(ipv6(datagram, here6, there6, UDP), ethertype=0x0800),
        ethernet(ipv6(nested, here6, there6, 0)),
        ethernet(ipv6(ipv6_extension(datagram, UDP), here6, there6, 0, payload_length=7)),
        ethernet(stacked, ethertype=TAGGED),
    ]  # fmt: skip


def damaged(frames: list[bytes], number: int, seed: int) -> list[bytes]:
    """Frames with bytes changed or cut off, always the same ones."""
    chance = random.Random(seed)
    frames = [frame for frame in frames if len(frame) > 20]
    found = []
    for _ in range(number):
        frame = bytearray(chance.choice(frames))
        for _ in range(chance.randrange(1, 4)):
            frame[chance.randrange(12, len(frame))] = chance.choice((0, 1, 4, 6, 0x45, 0xFF, 44))
        found.append(bytes(frame[: chance.randrange(15, len(frame) + 1)]))
    return found


def with_source(frame: bytes, mac: bytes) -> bytes:
    return frame[:6] + mac + frame[12:]


def send(device: str, frames: list[bytes]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((device, 0))
        for frame in frames:
            sender.send(frame)


Sums = dict[tuple[object, ...], tuple[int, int, int, int]]


def sums(counts: list[FlowCount]) -> Sums:
    """Packets, wire bytes, payload bytes and beginnings, by all that a count says beside them."""
    found: Multiset[tuple[tuple[object, ...], int]] = Multiset()
    keys = set()
    for count in counts:
        key = (count.interface, count.key, count.sent, count.reason)
        keys.add(key)
        figures = (count.packets, count.wire_bytes, count.payload_bytes, count.opens)
        for place, figure in enumerate(figures):
            found[key, place] += figure
    return {key: tuple(found[key, place] for place in range(4)) for key in keys}  # type: ignore


# At the end of what is sent, one that the kernel counts and one that it hands up.
LAST_GOOD, LAST_ODD = 201, 202
LAST = [
    ethernet(ipv4(b"", "10.9.9.1", "10.9.9.2", LAST_GOOD)),
    ethernet(ipv4(b"", "10.9.9.1", "10.9.9.2", LAST_ODD, offset=8)),
]


def is_last(count: FlowCount) -> bool:
    return count.key is not None and count.key.protocol in (LAST_GOOD, LAST_ODD)


def packets(counts: list[FlowCount]) -> int:
    return sum(count.packets for count in counts)


def read(tap: Tap, counts: list[FlowCount]) -> bool:
    """Reads on; whether the end has come, by both ways."""
    tap.wait(0.01)
    counts.extend(tap.drain())
    return {count.key.protocol for count in counts if is_last(count)} == {LAST_GOOD, LAST_ODD}


class Both:
    """The two engines on the same interface, each with a handle of its own."""

    def __init__(self, device: str) -> None:
        self.kernel = Tap([device], 1, timeout_ms=5, engine=KernelCounts.open())
        self.python = Tap([device], 1, timeout_ms=5)

    def send(self, device: str, frames: list[bytes]) -> tuple[list[FlowCount], list[FlowCount]]:
        """Sends them, and what the two counted, without the frames that mark the end."""
        send(device, [*frames, *LAST])
        kernel, python = [], []
        for tap, counts in ((self.kernel, kernel), (self.python, python)):
            wait_for(lambda tap=tap, counts=counts: read(tap, counts))
        return [c for c in kernel if not is_last(c)], [c for c in python if not is_last(c)]

    def close(self) -> None:
        self.kernel.close()
        self.python.close()


@pytest.mark.parametrize("make", [good_frames, odd_frames])
@pytest.mark.parametrize("sender", ["near", "far"])
def test_the_same_numbers_on_a_cable(space: Space, make: object, sender: str) -> None:
    def work() -> tuple[list[FlowCount], list[FlowCount], int]:
        macs = {interface.name: interface.mac for interface in list_interfaces()}
        ends = (HERE, THERE, HERE6, THERE6)
        if sender == "far":
            ends = (THERE, HERE, THERE6, HERE6)
        frames = [with_source(frame, macs[sender]) for frame in make(*ends)]  # type: ignore
        both = Both("near")
        try:
            kernel, python = both.send(sender, frames)
        finally:
            both.close()
        return kernel, python, len(frames)

    kernel, python, number = space.inside(work)
    assert packets(python) == number
    assert sums(kernel) == sums(python)


def test_the_same_numbers_on_loopback(space: Space) -> None:
    frames = good_frames("127.0.0.1", "127.0.0.2", "::1", "::1")
    frames += odd_frames("127.0.0.1", "127.0.0.2", "::1", "::1")

    def work() -> tuple[list[FlowCount], list[FlowCount]]:
        both = Both("lo")
        try:
            return both.send("lo", frames)
        finally:
            both.close()

    kernel, python = space.inside(work)
    assert packets(python) == 2 * len(frames)
    assert sums(kernel) == sums(python)


@pytest.mark.parametrize("sender", ["near", "far"])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_numbers_for_damaged_frames(space: Space, seed: int, sender: str) -> None:
    def work() -> tuple[list[FlowCount], list[FlowCount]]:
        macs = {interface.name: interface.mac for interface in list_interfaces()}
        ends = (THERE, HERE, THERE6, HERE6)
        frames = damaged(good_frames(*ends) + odd_frames(*ends), 3000, seed)
        both = Both("near")
        try:
            return both.send(sender, [with_source(frame, macs[sender]) for frame in frames])
        finally:
            both.close()

    kernel, python = space.inside(work)
    # The kernel itself drops some on their way: tags that are cut short.
    assert packets(python) > 2500
    assert sums(kernel) == sums(python)


FLOOD = """
import os, select, socket, sys
most, flows = int(sys.argv[1]), 50
sockets = []
for port in range(flows):
    sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    # A peer that nobody is: refusals would come back.
    sockets[-1].connect(("127.0.0.2", 20000 + port))
receiver = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(flows)]
for port, each in enumerate(receiver):
    try:
        each.bind(("127.0.0.2", 20000 + port))
    except OSError:
        pass  # the other flood has it
print("ready", flush=True)
os.read(0, len("go\\n"))
send = [each.send for each in sockets]
sent = 0
while sent < most and not select.select([sys.stdin], [], [], 0)[0]:
    for each in send:
        each(b"0123456789")
    sent += flows
print(sent, flush=True)
"""


def flood(space: Space, most: int) -> subprocess.Popen[str]:
    """Sends from the line "go" to "stop", but no more than ``most``; then says how many."""
    command = ["ip", "netns", "exec", space.name, sys.executable, "-S", "-c", FLOOD, str(most)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def tell(floods: list[Any], word: str) -> None:
    for process in floods:
        process.stdin.write(f"{word}\n")
        process.stdin.flush()


def test_nothing_is_lost_or_counted_twice_while_tables_change_places(space: Space) -> None:
    datagram_bytes, most, changes = 20 + 8 + 10, 50_000_000, 61
    counts: list[FlowCount] = []

    def work() -> None:
        tap = Tap(["lo"], 1, engine=KernelCounts.open())
        try:
            tell(floods, "go")
            changed = 0
            while changed < changes:
                drained = tap.drain()
                changed += bool(drained)
                counts.extend(drained)
            tell(floods, "stop")
            sent.extend(int(process.stdout.readline()) for process in floods)
        finally:
            tap.close()
        counts.extend(tap.drain())

    sent: list[int] = []
    with raised_backlog():
        floods: list[Any] = [flood(space, most) for _ in range(2)]
        try:
            space.inside(work)
        finally:
            for process in floods:
                process.communicate()
    # None has ended before it was told to.
    assert max(sent) < most
    flows = [count for count in counts if count.key and count.key.protocol == UDP]
    for is_sent in (True, False):
        of_one_end = [count for count in flows if count.sent is is_sent]
        assert packets(of_one_end) == sum(sent)
        assert sum(count.wire_bytes for count in of_one_end) == sum(sent) * datagram_bytes
        assert sum(count.payload_bytes for count in of_one_end) == sum(sent) * 10
        assert not any(count.reason for count in of_one_end)


def test_what_finds_the_table_full_is_counted_to_the_byte(space: Space) -> None:
    def work() -> list[list[FlowCount]]:
        (mac,) = (each.mac for each in list_interfaces() if each.name == "near")
        tap = Tap(["near"], 1, engine=KernelCounts.open(entries=64))
        rounds = []
        try:
            for payload in (b"x" * 10, b"x" * 20, b""):
                frames = [
                    with_source(udp_frame(HERE, port, THERE, 53, payload), mac)
                    for port in range(1000, 1000 + (200 if payload else 50))
                ]
                send("near", frames)
                rounds.append(tap.drain())
        finally:
            tap.close()
        return rounds

    first, second, third = space.inside(work)
    for counts, wire_bytes in ((first, 38), (second, 48)):
        full = [count for count in counts if count.reason is Reason.EVICTED]
        assert [(count.key, count.sent, count.interface) for count in full] == [
            (None, True, "near")
        ]
        assert packets(counts) == 200
        assert packets(full) == 200 - 64
        assert full[0].wire_bytes == (200 - 64) * wire_bytes
        assert full[0].payload_bytes == (200 - 64) * (wire_bytes - 28)
        assert full[0].first_ns <= full[0].last_ns
    assert packets(third) == 50
    assert not any(count.reason for count in third)


def test_a_flow_of_several_cpus_is_a_run_for_each(
    space: Space, require: Callable[[object, str, str], None]
) -> None:
    cpus = len(os.sched_getaffinity(0))
    require(cpus > 1, "needs two processors", "give this machine, or this process, another one")

    def work() -> list[FlowCount]:
        tap = Tap(["near"], 1, engine=KernelCounts.open())
        allowed = os.sched_getaffinity(0)
        try:
            for turn, cpu in enumerate(sorted(allowed), 1):
                os.sched_setaffinity(0, {cpu})
                send("near", [udp_frame(HERE, 1, THERE, 2, b"x")] * turn)
            return tap.drain()
        finally:
            os.sched_setaffinity(0, allowed)
            tap.close()

    counts = sorted(space.inside(work), key=lambda count: count.first_ns)
    assert len({count.key for count in counts}) == 1
    assert [(count.packets, count.wire_bytes, count.payload_bytes) for count in counts] == [
        (turn, 29 * turn, turn) for turn in range(1, cpus + 1)
    ]


UDP_SEGMENT = 103  # include/uapi/linux/udp.h, 4.18


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_buffer_of_many_packets_counts_as_many(space: Space, address: str) -> None:
    def work() -> list[FlowCount]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        tap = Tap(["lo"], 1, engine=KernelCounts.open())
        try:
            with (
                socket.socket(family, socket.SOCK_DGRAM) as receiver,
                socket.socket(family, socket.SOCK_DGRAM) as sender,
            ):
                receiver.bind((address, 0))
                sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
                sender.sendto(bytes(950), receiver.getsockname())
                assert len(receiver.recv(2000)) == 100
            return tap.drain()
        finally:
            tap.close()

    headers_bytes = (40 if ":" in address else 20) + 8
    counts = space.inside(work)
    assert sorted(count.sent for count in counts) == [False, True]
    for count in counts:
        assert count.packets == 10
        assert count.payload_bytes == 950
        assert count.wire_bytes == 950 + 10 * headers_bytes


def test_times_are_the_wall_clock_s(space: Space) -> None:
    def work() -> list[FlowCount]:
        tap = Tap(["near"], 1, engine=KernelCounts.open())
        try:
            for _ in range(2):
                send("near", [udp_frame(HERE, 1, THERE, 2)])
                time.sleep(0.01)
            return tap.drain()
        finally:
            tap.close()

    before_ns = time.time_ns()
    counts = space.inside(work)
    first_ns = min(count.first_ns for count in counts)
    assert before_ns <= first_ns
    assert first_ns + 10_000_000 <= max(count.last_ns for count in counts) <= time.time_ns()


def test_each_connection_is_counted_apart(space: Space) -> None:
    def work() -> list[FlowCount]:
        tap = Tap(["near"], 1, engine=KernelCounts.open())
        try:
            for _ in range(3):
                syn, data = (
                    tcp_frame(HERE, 1, THERE, 2, flags=SYN), tcp_frame(HERE, 1, THERE, 2, b"x")
                )  # fmt: skip
                back = tcp_frame(THERE, 2, HERE, 1, b"yy")
                send("near", [syn, data, data])
                send("far", [back])
            return tap.drain()
        finally:
            tap.close()

    counts = space.inside(work)
    rows = sorted((not count.sent, count.packets, count.opens) for count in counts)
    assert rows == [(False, 3, True)] * 3 + [(True, 1, False)] * 3


def test_what_came_before_the_engine_is_counted_once(space: Space) -> None:
    class Late(KernelCounts):
        def attach(self, descriptor: int) -> None:
            send("near", [udp_frame(HERE, 1, THERE, 2)] * 30)
            super().attach(descriptor)
            send("near", [udp_frame(HERE, 1, THERE, 2)] * 12)

    def work() -> list[FlowCount]:
        tap = Tap(["near"], 1, timeout_ms=5, engine=Late.open())
        found: list[FlowCount] = []
        try:
            send("near", LAST)
            wait_for(lambda: read(tap, found))
        finally:
            tap.close()
        return found

    counts = space.inside(work)
    found = [count.packets for count in counts if not is_last(count)]
    # Python counts by the pauses between packets, the kernel in one piece.
    assert sum(found) == 42
    assert 12 in found


def test_an_interface_that_comes_back_is_counted_again(space: Space) -> None:
    def work() -> tuple[list[FlowCount], int]:
        tap = Tap(["near"], 1, engine=KernelCounts.open())
        counts: list[FlowCount] = []
        try:
            send("near", [udp_frame(HERE, 1, THERE, 2)] * 3)
            space.ip("link", "delete", "near")
            wait_for(lambda: (tap.wait(0.01), not tap.interfaces)[-1])
            counts += tap.drain()
            assert packets(counts) == 3
            lay_cable(space)
            wait_for(lambda: (tap.wait(0.01), tap.interfaces == ("near",))[-1])
            send("near", [udp_frame(HERE, 1, THERE, 2)] * 4)
            counts += tap.drain()
        finally:
            tap.close()
        return counts, tap.interruptions

    counts, interruptions = space.inside(work)
    assert packets(counts) == 7
    assert {count.interface for count in counts} == {"near"}
    assert interruptions == 1


def test_another_address_changes_the_direction_of_what_comes_then(space: Space) -> None:
    def work() -> list[FlowCount]:
        tap = Tap(["near"], 1, engine=KernelCounts.open())
        frame = udp_frame(ELSEWHERE, 1, HERE, 2)
        try:
            send("far", [frame])
            space.ip("address", "add", f"{ELSEWHERE}/24", "dev", "near")
            tap.wait(1.0)
            send("far", [frame])
            return tap.drain()
        finally:
            tap.close()

    # The kernel answers that there is no such port.
    counts = [count for count in space.inside(work) if count.key and count.key.protocol == UDP]
    assert [count.sent for count in counts] == [False, True, False]


def test_an_idle_engine_does_not_even_change_tables(space: Space) -> None:
    class Watched(KernelCounts):
        takes = 0

        def _take(self):  # type: ignore
            self.takes += 1
            return super()._take()

    def work() -> list[int]:
        engine = Watched.open()
        tap = Tap(["near"], 1, engine=engine)
        takes = []
        try:
            for frames in ([], [udp_frame(HERE, 1, THERE, 2)], []):
                send("near", frames)
                tap.drain()
                takes.append(engine.takes)
        finally:
            tap.close()
        return takes

    # After a drain that found something, one more may look in vain.
    idle, busy, after = space.inside(work)
    assert (idle, busy) == (0, 1)
    assert after <= 2


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def programs_of_the_machine() -> set[int]:
    next_id = ctypes.CDLL("libbpf.so.1").bpf_prog_get_next_id
    found, number = set(), ctypes.c_uint32(0)
    while next_id(number, ctypes.byref(number)) == 0:
        found.add(number.value)
    return found


def own_programs() -> set[int]:
    """Those that this process has open. Others may count on this machine, too."""
    found = set()
    for path in Path("/proc/self/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # what this loop itself had open
            found |= {
                int(each) for each in re.findall(r"^prog_id:\s*(\d+)", path.read_text(), re.M)
            }
    return found


def test_close_gives_everything_back(space: Space) -> None:
    files, threads, before = open_files(), threading.active_count(), own_programs()
    opened = space.inside(lambda: Tap(["near", "lo"], 1, engine=KernelCounts.open()))
    loaded = own_programs() - before
    opened.close()
    opened.close()
    assert len(loaded) == 1
    assert (open_files(), threading.active_count()) == (files, threads)
    wait_for(lambda: not programs_of_the_machine() & loaded)


def test_an_engine_whose_tap_cannot_be_made_is_closed(space: Space) -> None:
    files, before = open_files(), own_programs()
    loaded: set[int] = set()

    def work() -> None:
        engine = KernelCounts.open()
        loaded.update(own_programs() - before)
        Tap(["nosuch"], 1, engine=engine)

    with pytest.raises(CaptureError, match="no such interface"):
        space.inside(work)
    assert len(loaded) == 1
    assert open_files() == files
    wait_for(lambda: not programs_of_the_machine() & loaded)


def refuse(*_: object, **__: object) -> KernelCounts:
    raise LoadError("the kernel does not like it")


def test_without_the_program_packets_are_counted_in_python(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KernelCounts, "open", refuse)

    def work() -> Features:
        with Monitor(["lo"]) as monitor:
            return monitor.features

    features = space.inside(work)
    assert (features.counting, features.owners) == ("python", "core")
    (rung,) = [rung for rung in features.rungs if rung.name == "kernel counting"]
    assert (rung.support, rung.reason) == (Support.NO, "the kernel does not like it")


def test_a_forced_program_that_is_refused_is_an_error(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KernelCounts, "open", refuse)
    files = open_files()
    with pytest.raises(LoadError, match="does not like it"):
        space.inside(lambda: Monitor(["lo"], counting="kernel").start())
    assert open_files() == files


HEIRS = """
import os, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("127.0.0.1", 0))
s.connect(receiver.getsockname())
for turn in range(200):
    pid = os.fork()
    if pid == 0:
        for _ in range(1 + turn % 23):
            s.send(bytes(100))
        print(os.getpid(), 1 + turn % 23, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(float(sys.argv[1]))
"""


PAUSE_S = 0.002 if os.environ.get("PROCNET_VM") != "1" else 0.023
"""Longer than packets wait for the one processor of an emulated machine."""


def count_heirs(counting: str, pause_s: float) -> tuple[dict[int, int], dict[int, int], int]:
    """Bytes that each process says that it sent, and bytes that the report says that it did, and of
    how many it says that it may have been one or another."""
    with Monitor(["lo"], counting=counting) as monitor:
        argv = [sys.executable, "-S", "-c", HEIRS, str(pause_s)]
        said = subprocess.check_output(argv, text=True)
    sent = {int(pid): 100 * int(number) for pid, number in map(str.split, said.splitlines())}
    report = monitor.report()
    assert monitor.features.counting == counting
    ambiguous = report.reasons.get(Reason.AMBIGUOUS, NOTHING).sent.payload_bytes
    of_processes = {row.process.pid: row.sent.payload_bytes for row in report.processes}
    return sent, of_processes, ambiguous


@pytest.mark.parametrize("counting", ["kernel", "python"])
def test_a_tuple_that_changes_hands_is_counted_apart(loopback: Namespace, counting: str) -> None:
    sent, reported, ambiguous = loopback.call(count_heirs, counting, 0.0)
    assert len(sent) == 200
    found = {pid: reported.get(pid, 0) for pid in sent}
    assert all(found[pid] <= sent[pid] for pid in sent)
    assert sum(found.values()) + ambiguous == sum(sent.values())
    # In Python a run is what came without a pause of 0.1 ms: it may go from the one to the next.
    assert found == sent or (counting == "python" and ambiguous)


def test_a_tuple_that_changes_hands_with_a_pause_has_no_doubts(loopback: Namespace) -> None:
    sent, reported, ambiguous = loopback.call(count_heirs, "python", PAUSE_S)
    assert {pid: reported.get(pid, 0) for pid in sent} == sent
    assert ambiguous == 0


def take_turns() -> tuple[dict[int, int], dict[int, tuple[int, int]], set[Reason], int]:
    """What takers.py says of each process, and of the report the same, reasons, events lost."""
    workload = TOP / "tests" / "workloads" / "takers.py"
    with Monitor(["lo"], counting="kernel") as monitor:
        argv = [sys.executable, "-S", str(workload), "2"]
        said = subprocess.check_output(argv, text=True, timeout=60)
    lines = [line.split() for line in said.splitlines()]
    report = monitor.report()
    rows = {row.process.pid: (row.sent.packets, row.received.packets) for row in report.processes}
    return (
        {int(pid): int(number) for pid, number in lines}, rows, set(report.reasons),
        report.loss.events_lost,
    )  # fmt: skip


def test_turns_on_one_socket_do_not_split_the_counters_of_all_others(
    loopback: Namespace,
) -> None:
    said, rows, reasons, events_lost = loopback.call(take_turns)
    *takers, sender = said
    assert Reason.EVICTED not in reasons
    assert rows[sender][0] <= said[sender]
    # With so many events the ring may overflow; then it is said, and not believed.
    if not events_lost:
        assert rows[sender][0] == said[sender]
    for taker in takers:
        assert taker not in rows or rows[taker][1] <= said[taker]
