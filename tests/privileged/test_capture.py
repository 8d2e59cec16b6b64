"""Live capture, in namespaces of our own: exact counts, no stolen GIL or Ctrl-C, honest losses."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from procnet.capture import tap
from procnet.capture.counter import Counter
from procnet.capture.handle import SNAPLEN_BYTES, InterfaceGoneError, LiveHandle, probe
from procnet.capture.interfaces import (
    Interface,
    InterfaceWatch,
    default_interfaces,
    list_interfaces,
    local_addresses,
)
from procnet.errors import CaptureError, UsageError
from procnet.model import TCP, UDP, FlowCount, Support
from procnet.testing.frames import tcp_frame, udp_frame, write_pcap
from tests.privileged.space import WAIT_S, Space, lay_cable, send_raw, wait_for
from tests.workloads.traffic import tcp_info

pytestmark = pytest.mark.privileged

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def cable(space: Space) -> Space:
    """The namespace with a pair of devices in it, ``near`` and ``far``, the near one addressed."""
    lay_cable(space)
    return space


def read_until(
    handle: LiveHandle, callback: Callable[[float, bytes], object], done: Callable[[], object]
) -> None:
    """Reads as a caller should: wait in poll(), then take what is there."""
    poller = select.poll()
    poller.register(handle.fileno(), select.POLLIN)
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s, "waited in vain"
        poller.poll(100)
        handle.read(callback)


def total(counts: list[FlowCount], protocol: int, *, sent: bool, port: int) -> tuple[int, ...]:
    rows = [
        count
        for count in counts
        if count.key and count.sent == sent
        and (count.key.protocol, count.key.local_port) == (protocol, port)
    ]  # fmt: skip
    return tuple(
        sum(figures)
        for figures in zip(
            *[(row.packets, row.wire_bytes, row.payload_bytes) for row in rows], strict=True
        )
    )


@pytest.mark.parametrize(
    ("family", "address", "headers"),
    [(socket.AF_INET, "127.0.0.1", 28), (socket.AF_INET6, "::1", 48)],
)
def test_udp_on_loopback_is_counted_exactly_at_both_ends(
    space: Space, family: int, address: str, headers: int
) -> None:
    packets, payload = 1009, 101
    handle = space.inside(lambda: LiveHandle("lo"))
    counter = Counter("lo", handle.link_type, 1, space.inside(local_addresses), loopback=True)

    def send() -> tuple[int, int]:
        with (
            socket.socket(family, socket.SOCK_DGRAM) as sender,
            socket.socket(family, socket.SOCK_DGRAM) as receiver,
        ):
            receiver.bind((address, 0))
            sender.bind((address, 0))
            for _ in range(packets):
                sender.sendto(bytes(payload), receiver.getsockname())
            return sender.getsockname()[1], receiver.getsockname()[1]

    with handle:
        sender, receiver = space.inside(send)
        read: list[None] = []

        def count(timestamp: float, frame: bytes) -> None:
            counter.add(timestamp, frame)
            read.append(None)

        read_until(handle, count, lambda: len(read) >= packets)
        assert handle.dropped_packets() == 0
    counts = counter.drain()
    expected = (packets, packets * (payload + headers), packets * payload)
    assert total(counts, UDP, sent=True, port=sender) == expected
    assert total(counts, UDP, sent=False, port=receiver) == expected
    assert total(counts, UDP, sent=False, port=sender) == ()
    assert sum(count.packets for count in counts) == 2 * packets


def test_tcp_payload_on_loopback_is_what_was_written(space: Space) -> None:
    """More than fits a packet, so offload shows packets larger than any wire would carry."""
    payload = 1_000_003
    handle = space.inside(lambda: LiveHandle("lo"))
    counter = Counter("lo", handle.link_type, 1, space.inside(local_addresses), loopback=True)

    def exchange() -> tuple[int, int, int]:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as client,
        ):
            writer = threading.Thread(target=client.sendall, args=(bytes(payload),))
            with server.accept()[0] as accepted:
                writer.start()
                missing = payload
                while missing:
                    missing -= len(accepted.recv(65536))
                writer.join()
            again = tcp_info(client)["retransmitted_bytes"]
            return client.getsockname()[1], server.getsockname()[1], again

    with handle:
        client, server, again = space.inside(exchange)
        counts: list[FlowCount] = []

        def counted() -> tuple[int, int]:
            counts.extend(counter.drain())
            sent = total(counts, TCP, sent=True, port=client)
            received = total(counts, TCP, sent=False, port=server)
            return sum(sent[2:]), sum(received[2:])

        # A machine that stands still for a moment makes the kernel send a packet twice.
        expected = payload + again
        read_until(handle, counter.add, lambda: min(counted()) >= expected)
    assert counted() == (expected, expected)


def test_an_idle_read_returns_at_once(space: Space) -> None:
    with space.inside(lambda: LiveHandle("lo")) as handle:
        before = times_waited()
        assert sum(handle.read(lambda *_: None) for _ in range(101)) == 0
        assert times_waited() - before < 101


def times_waited() -> int:
    """How often this thread has given up its processor of its own will."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def test_waiting_does_not_hold_the_gil(space: Space) -> None:
    """What is waited for comes from another thread of the program's own."""
    rounds = 7
    found: list[bytes] = []
    with space.inside(lambda: LiveHandle("lo")) as handle:
        begun = threading.Semaphore(0)

        def send_when_waited_for() -> None:
            for _ in range(rounds):
                begun.acquire()
                send_over_loopback(space, 101, 1)

        other = threading.Thread(target=send_when_waited_for)
        other.start()
        try:
            for number in range(1, rounds + 1):
                begun.release()
                while len(found) < number:
                    assert wait_readable(handle), "nobody could send"
                    handle.read(lambda timestamp, frame: found.append(frame))
        finally:
            begun.release(rounds)
            other.join()


def wait_readable(handle: LiveHandle) -> bool:
    return bool(select.select([handle.fileno()], [], [], WAIT_S)[0])


def test_ctrl_c_interrupts_a_capture_at_once(space: Space) -> None:
    code = (
        "import select\n"
        "from procnet.capture.handle import LiveHandle\n"
        "with LiveHandle('lo') as handle:\n"
        "    handle.read(print)\n"
        "    try:\n"
        "        print('reading', flush=True)\n"
        "        while True:\n"
        "            select.select([handle.fileno()], [], [])\n"
        "            handle.read(print)\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', flush=True)\n"
    )
    command = ["ip", "netns", "exec", space.name, sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TOP) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "reading\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=WAIT_S)[0] == "interrupted\n"
            assert process.returncode == 0
        finally:
            process.kill()


def test_a_deleted_interface_is_told_and_can_be_opened_again(cable: Space) -> None:
    watch = cable.inside(InterfaceWatch)
    handle = cable.inside(lambda: LiveHandle("near"))
    index = {i.name: i.index for i in cable.inside(list_interfaces)}["near"]
    with contextlib.closing(watch), handle:
        watch.changed()
        cable.ip("link", "delete", "near")
        with pytest.raises(InterfaceGoneError, match="near"):
            read_until(handle, lambda *_: None, lambda: False)
        assert watch.changed()
        assert handle.dropped_packets() == 0
        lay_cable(cable)
        assert watch.changed()
    assert {i.name: i.index for i in cable.inside(list_interfaces)}["near"] != index
    found: list[bytes] = []
    frame = tcp_frame("10.9.0.2", 5, "10.9.0.1", 6)
    with cable.inside(lambda: LiveHandle("near")) as again:
        send_raw(cable, "far", frame, 7)
        read_until(again, lambda timestamp, data: found.append(data), lambda: len(found) >= 7)
    assert found == [frame] * 7


def test_an_interface_that_is_gone_for_good_is_not_looked_for(
    cable: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[None] = []

    def counted() -> list[Interface]:
        followed.append(None)
        return default_interfaces()

    monkeypatch.setattr(tap, "REOPEN_EVERY_S", 0.0)
    monkeypatch.setattr(tap, "default_interfaces", counted)
    with contextlib.closing(cable.inside(lambda: tap.Tap(None, 1))) as reader:
        assert reader.interfaces == ("lo", "near")
        cable.ip("link", "delete", "near")

        def follows() -> int:
            before = len(followed)
            cable.inside(lambda: reader.wait(0))
            return len(followed) - before

        wait_for(lambda: follows() and reader.interfaces == ("lo",))
        wait_for(lambda: not follows())
        lay_cable(cable)
        wait_for(lambda: follows() and reader.interfaces == ("lo", "near"))


def test_what_is_sent_from_a_new_mac_is_ours(cable: Space) -> None:
    """Without an address of ours in it, as DHCP sends: the MAC says who has sent it."""
    counts: list[FlowCount] = []

    def seen(reader: tap.Tap, packets: int) -> bool:
        cable.inside(lambda: reader.wait(0.01))
        counts.extend(count for count in reader.drain() if count.key and count.key.local_port == 68)
        return sum(count.packets for count in counts) >= packets

    frame = udp_frame("0.0.0.0", 68, "255.255.255.255", 67, bytes(101))
    with contextlib.closing(cable.inside(lambda: tap.Tap(["near"], 1))) as reader:
        for number, mac in enumerate((b"\x02\0\0\0\0\7", b"\x02\0\0\0\0\x17"), 1):
            with contextlib.closing(cable.inside(InterfaceWatch)) as watch:
                cable.ip("link", "set", "near", "address", mac.hex(":"))
                wait_for(watch.changed)
            cable.inside(lambda: reader.wait(0))
            send_raw(cable, "near", frame[:6] + mac + frame[12:], 7)
            wait_for(functools.partial(seen, reader, 7 * number))
    assert {count.sent for count in counts} == {True}
    assert sum(count.packets for count in counts) == 2 * 7


def test_an_interface_that_is_down_for_a_while_is_read_on(cable: Space) -> None:
    found: list[bytes] = []
    frame = tcp_frame("10.9.0.2", 5, "10.9.0.1", 6)
    with cable.inside(lambda: LiveHandle("near")) as handle:
        cable.ip("link", "set", "near", "down")
        handle.read(lambda *_: None)
        cable.ip("link", "set", "near", "up")
        send_raw(cable, "far", frame, 7)
        read_until(handle, lambda timestamp, data: found.append(data), lambda: len(found) >= 7)
    assert found == [frame] * 7


def test_an_interface_that_is_down_cannot_be_opened(cable: Space) -> None:
    cable.ip("link", "set", "near", "down")
    with pytest.raises(CaptureError, match=r"cannot capture on near: .*not up"):
        cable.inside(lambda: LiveHandle("near"))


def test_what_the_kernel_drops_is_a_number(cable: Space) -> None:
    """Nobody reads while they come: what the small buffer cannot hold is dropped, and said so."""
    packets = 20_011
    received = [0]

    def count(timestamp: float, frame: bytes) -> None:
        received[0] += 1

    frame = tcp_frame("10.9.0.2", 5, "10.9.0.1", 6, bytes(1009))
    with cable.inside(lambda: LiveHandle("near", buffer_bytes=256 << 10)) as handle:
        send_raw(cable, "far", frame, packets)
        read_until(handle, count, lambda: received[0] + handle.dropped_packets() >= packets)
        dropped = handle.dropped_packets()
        assert dropped > 0
        assert received[0] + dropped == packets
        assert handle.dropped_packets() == dropped
    assert handle.dropped_packets() == dropped


def send_over_loopback(space: Space, payload_bytes: int, packets: int) -> None:
    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(packets):
                    sender.sendto(bytes(payload_bytes), receiver.getsockname())

    space.inside(send)


def test_a_loopback_packet_that_is_dropped_is_one(space: Space) -> None:
    packets = 20_011
    received: list[None] = []
    with space.inside(lambda: LiveHandle("lo", buffer_bytes=256 << 10)) as handle:
        send_over_loopback(space, 101, packets)
        read_until(
            handle,
            lambda *_: received.append(None),
            lambda: len(received) + handle.dropped_packets() >= packets,
        )
        assert handle.dropped_packets() > 0
        assert len(received) + handle.dropped_packets() == packets


def test_large_packets_take_no_more_room_than_their_headers(space: Space) -> None:
    """As a whole they would be six times as large as the buffer."""
    packets, payload_bytes = 101, 60_013
    space.ip("link", "set", "lo", "mtu", "65536")
    found: list[int] = []
    with space.inside(lambda: LiveHandle("lo", buffer_bytes=1 << 20)) as handle:
        send_over_loopback(space, payload_bytes, packets)
        read_until(
            handle,
            lambda timestamp, frame: found.append(len(frame)),
            lambda: len(found) + handle.dropped_packets() >= packets,
        )
        assert handle.dropped_packets() == 0
    assert found == [SNAPLEN_BYTES] * packets


def test_a_batch_ends_although_more_has_come(cable: Space) -> None:
    sizes: list[int] = []
    with cable.inside(lambda: LiveHandle("near")) as handle:
        send_raw(cable, "far", tcp_frame("10.9.0.2", 5, "10.9.0.1", 6), 101)

        def one_more() -> bool:
            sizes.append(handle.read(lambda *_: None, 7))
            return sum(sizes) >= 101

        wait_for(one_more)
    assert max(sizes) == 7
    assert sum(sizes) == 101


def test_only_headers_are_kept(cable: Space) -> None:
    found: list[bytes] = []
    frame = tcp_frame("10.9.0.2", 5, "10.9.0.1", 6, bytes(1009))
    with cable.inside(lambda: LiveHandle("near", snaplen_bytes=96)) as handle:
        send_raw(cable, "far", frame, 1)
        read_until(handle, lambda timestamp, data: found.append(data), lambda: found)
    assert found == [frame[:96]]


@pytest.mark.parametrize("name", ["nope", "any", "/dev/null", "near\n"])
def test_only_interfaces_that_exist_are_opened(cable: Space, name: str) -> None:
    with pytest.raises(CaptureError, match="no such interface; there are lo, far, near"):
        cable.inside(lambda: LiveHandle(name))


def test_a_file_is_not_read_in_place_of_the_interface(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pcap("lo", [tcp_frame("10.0.0.1", 5, "10.0.0.2", 6)])
    with pytest.raises(CaptureError, match="a file of that name"):
        space.inside(lambda: LiveHandle("lo"))
    os.unlink("lo")
    os.mkdir("lo")
    space.inside(lambda: LiveHandle("lo")).close()


def test_after_close_nothing_is_touched_and_nothing_is_left(space: Space) -> None:
    before = set(os.listdir("/proc/self/fd"))
    handle = space.inside(lambda: LiveHandle("lo"))
    handle.close()
    handle.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert handle.dropped_packets() == 0
    for use in (handle.fileno, lambda: handle.read(lambda *_: None)):
        with pytest.raises(CaptureError, match="it is closed"):
            use()


def test_another_thread_may_close_during_a_read(cable: Space) -> None:
    handle = cable.inside(lambda: LiveHandle("near"))
    found: list[bytes] = []

    def close_elsewhere(timestamp: float, frame: bytes) -> None:
        other = threading.Thread(target=handle.close)
        other.start()
        other.join()
        found.append(frame)
        with pytest.raises(UsageError, match="under way"):
            handle.read(lambda *_: None)

    send_raw(cable, "far", tcp_frame("10.9.0.2", 5, "10.9.0.1", 6), 5)
    with contextlib.suppress(CaptureError):
        read_until(handle, close_elsewhere, lambda: False)
    assert 1 <= len(found) <= 5


def test_what_is_captured_by_default_carries_our_addresses(cable: Space) -> None:
    cable.ip("link", "add", "off", "type", "veth", "peer", "name", "end")
    cable.ip("address", "add", "10.9.1.1/24", "dev", "off")
    assert [i.name for i in cable.inside(default_interfaces)] == ["lo", "near"]
    expected = {"127.0.0.1", "10.9.0.1", "10.9.1.1"}
    found = {a for a in cable.inside(local_addresses) if len(a) == 4}
    assert found == set(map(socket.inet_aton, expected))


def test_a_change_of_addresses_is_told(cable: Space) -> None:
    with contextlib.closing(cable.inside(InterfaceWatch)) as watch:
        watch.changed()
        for change in ("add", "delete"):
            cable.ip("address", change, "fd09::1/64", "dev", "near", "nodad")
            assert select.select([watch], [], [], WAIT_S)[0]
            assert watch.changed()


def test_more_changes_than_a_socket_holds_are_still_a_change(cable: Space) -> None:
    with contextlib.closing(cable.inside(InterfaceWatch)) as watch:
        watch.changed()
        commands = "".join(
            f"address add 10.{n}.7.1/32 dev near\n" for n in range(20, 250)
        ) + "".join(f"link set near mtu {1400 + n % 2}\n" for n in range(2003))
        subprocess.run(
            ["ip", "-n", cable.name, "-batch", "-"], input=commands, check=True, text=True
        )
        assert watch.changed()
        assert not watch.changed()


def test_the_probe_says_yes_here() -> None:
    found = probe()
    assert found.support is Support.YES
    assert "pcap" in found.reason
