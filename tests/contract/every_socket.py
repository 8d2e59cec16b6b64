"""Sockets of every kind and state, and the rows that both sources must show for them.

The truth is what the socket itself says (getsockname, getpeername, its inode and owner), not what
any table does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

from procnet.model import Socket, unmapped
from procnet.sockets.scanner import SocketScanner
from tests.workloads.writers import deafen

WAIT_S = 10.0
NOBODY = 65534
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
FOUR, SIX = socket.AF_INET, socket.AF_INET6


class EverySocket:
    """Opens them. ``privileged`` adds what only root may have, in a namespace of its own.

    ``expected`` are the rows of sockets with a file; of those without one, ``without_file`` has the
    state and both ports.
    """

    def __init__(self, *, privileged: bool = False) -> None:
        self.netns = os.stat("/proc/thread-self/ns/net").st_ino
        self.expected: dict[str, Socket] = {}
        self.without_file: set[tuple[str, int, int]] = set()
        self._stack = contextlib.ExitStack()
        try:
            self._open_tcp()
            self._open_udp()
            if privileged:
                self._open_privileged()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> EverySocket:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def _new(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return self._stack.enter_context(socket.socket(family, kind, protocol))

    def _expect(
        self, name: str, made: socket.socket, state: str, protocol: int = 0,
        uid: int | None = None, send_queue_bytes: int = 0,
    ) -> None:  # fmt: skip
        family = 4 if made.family == FOUR else 6
        near = _end(made.getsockname())
        try:
            far = _end(made.getpeername())
        except OSError:
            far = (bytes(4 if family == 4 else 16), 0)
        self.expected[name] = Socket(
            self.netns, protocol or made.proto, family, *near, *far, state,
            os.fstat(made.fileno()).st_ino, os.geteuid() if uid is None else uid,
            send_queue_bytes,
        )  # fmt: skip

    def _expect_without_file(
        self, state: str, made: socket.socket, *, far_end: bool = False
    ) -> None:
        ports = (made.getsockname()[1], made.getpeername()[1])
        self.without_file.add((state, *(ports[::-1] if far_end else ports)))

    def _listen(self, name: str, family: int, address: str, **options: int) -> socket.socket:
        made = self._new(family, TCP, socket.IPPROTO_TCP)
        for option, value in options.items():
            level = socket.IPPROTO_IPV6 if option.startswith("IPV6") else socket.SOL_SOCKET
            level = socket.IPPROTO_TCP if option.startswith("TCP") else level
            made.setsockopt(level, getattr(socket, option), value)
        made.bind((address, 0))
        made.listen(8)
        self._expect(name, made, "listen")
        return made

    def _connect(self, to: socket.socket, address: str, family: int) -> socket.socket:
        made = self._new(family, TCP, socket.IPPROTO_TCP)
        made.settimeout(WAIT_S)
        made.connect((address, to.getsockname()[1]))
        return made

    def _pair(
        self, listener: socket.socket, address: str, family: int
    ) -> tuple[socket.socket, socket.socket]:
        near = self._connect(listener, address, family)
        far = self._stack.enter_context(listener.accept()[0])
        return near, far

    def _open_tcp(self) -> None:
        four = self._listen("listen", FOUR, "127.0.0.1")
        six = self._listen("listen6", SIX, "::1", IPV6_V6ONLY=1)
        both = self._listen("dual", SIX, "::", IPV6_V6ONLY=0)
        mapped = self._listen("mapped", SIX, "::ffff:127.0.0.1", IPV6_V6ONLY=0)
        self._listen("v6only", SIX, "::", IPV6_V6ONLY=1)
        self._listen("wildcard", FOUR, "0.0.0.0")
        # No table of /proc/net has it before it connects or listens.
        self._new(FOUR, TCP).bind(("127.0.0.1", 0))
        for name, listener, address, family in (
            ("four", four, "127.0.0.1", FOUR),
            ("six", six, "::1", SIX),
            ("both6", both, "::1", SIX),
            ("both4", both, "127.0.0.1", FOUR),
            ("mapped", mapped, "::ffff:127.0.0.1", SIX),
        ):
            for end, made in zip(
                ("connected", "accepted"), self._pair(listener, address, family), strict=True
            ):
                self._expect(f"{name} {end}", made, "established")
            near, far = self._pair(listener, address, family)
            near.shutdown(socket.SHUT_WR)
            self._expect(f"{name} half closed", near, "fin_wait_2")
            self._expect(f"{name} left", far, "close_wait")
            near, far = self._pair(listener, address, family)
            for made in (near, far):  # neither is to wait for the other at the end
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            deafen(far)
            near.sendall(bytes(101))
            self._expect(f"{name} unacknowledged", near, "established", send_queue_bytes=101)
            self._expect(f"{name} deaf", far, "established")
            near, far = self._pair(listener, address, family)
            self._expect_without_file("time_wait", near)
            near.close()
            far.settimeout(WAIT_S)
            far.recv(1)
            far.close()
        waiting = self._connect(four, "127.0.0.1", FOUR)  # nobody accepts it
        self._expect("in the queue", waiting, "established")
        self._expect_without_file("established", waiting, far_end=True)
        for name, family, address in (("defer", FOUR, "127.0.0.1"), ("defer6", SIX, "::")):
            deferring = self._listen(name, family, address, TCP_DEFER_ACCEPT=60)
            shaking = self._connect(deferring, "127.0.0.1", FOUR)
            self._expect(f"{name} shaking", shaking, "established")
            self._expect_without_file("syn_recv", shaking, far_end=True)

    def _open_udp(self) -> None:
        for protocol, name in ((socket.IPPROTO_UDP, "udp"), (136, "udplite")):
            for family, address in (
                (FOUR, "127.0.0.1"), (FOUR, "0.0.0.0"), (SIX, "::1"), (SIX, "::"),
                (SIX, "::ffff:127.0.0.1"),
            ):  # fmt: skip
                try:
                    bound = self._new(family, UDP, protocol)
                except OSError:  # UDP-Lite is an option of the kernel's
                    continue
                bound.bind((address, 0))
                self._expect(f"{name} {family} {address}", bound, "unconnected")
                connected = self._new(family, UDP, protocol)
                connected.connect((address, bound.getsockname()[1]))
                self._expect(f"{name} {family} {address} connected", connected, "established")
        port = 0
        for number in range(2):  # two sockets of one port
            shared = self._new(FOUR, UDP, socket.IPPROTO_UDP)
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared.bind(("127.0.0.1", port))
            port = shared.getsockname()[1]
            self._expect(f"shared {number}", shared, "unconnected")

    def _open_privileged(self) -> None:
        with open("/proc/sys/net/ipv4/ping_group_range", "w") as file:
            file.write("0 2147483647")
        for family, protocol in ((FOUR, 253), (SIX, 253), (FOUR, 1), (FOUR, 255), (SIX, 58)):
            raw = self._new(family, socket.SOCK_RAW, protocol)
            self._expect_portless(f"raw {family} {protocol}", raw, "unconnected", protocol)
        raw = self._new(FOUR, socket.SOCK_RAW, 253)
        raw.connect(("127.0.0.1", 9))
        self._expect_portless("raw connected", raw, "established", 253)
        for family, address, protocol in ((FOUR, "127.0.0.1", 1), (SIX, "::1", 58)):
            ping = self._new(family, UDP, protocol)
            ping.bind((address, 7004))
            self._expect(f"ping {family}", ping, "unconnected")
        packet = self._new(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.expected["packet"] = Socket(
            self.netns, 0, 0, b"", 0, b"", 0, "packet", os.fstat(packet.fileno()).st_ino, 0
        )
        silent = self._new(FOUR, TCP, socket.IPPROTO_TCP)
        silent.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            silent.connect(("192.0.2.1", 9))  # it is routed to lo, where nobody has it
        self._expect_unanswered(silent)
        self._open_as_nobody()
        self._open_orphans()

    def _expect_unanswered(self, silent: socket.socket) -> None:
        self._expect("unanswered", silent, "syn_sent", send_queue_bytes=1)  # the SYN itself
        far = (socket.inet_aton("192.0.2.1"), 9)
        row = self.expected["unanswered"]
        self.expected["unanswered"] = row._replace(remote_address=far[0], remote_port=far[1])

    def _expect_portless(self, name: str, made: socket.socket, state: str, protocol: int) -> None:
        self._expect(name, made, state, protocol)
        self.expected[name] = self.expected[name]._replace(local_port=0, remote_port=0)

    def _open_as_nobody(self) -> None:
        os.seteuid(NOBODY)
        try:
            listener = self._listen("nobody's", FOUR, "127.0.0.1", TCP_DEFER_ACCEPT=60)
            self._listen("nobody's v6", SIX, "::", TCP_DEFER_ACCEPT=60)
            udp = self._new(SIX, UDP, socket.IPPROTO_UDP)
            udp.bind(("::1", 0))
            self._expect("nobody's udp", udp, "unconnected")
        finally:
            os.seteuid(0)
        six = self.expected["nobody's v6"]
        shaking = self._connect(listener, "127.0.0.1", FOUR)
        self._expect_without_file("syn_recv", shaking, far_end=True)
        for family, address in ((FOUR, "127.0.0.1"), (SIX, "::1")):
            made = self._new(family, TCP)
            made.settimeout(WAIT_S)
            made.connect((address, six.local_port))
            self._expect_without_file("syn_recv", made, far_end=True)

    def _open_orphans(self) -> None:
        """Closed with bytes that the other end does not read: no file, and a life of their own."""
        listener = self._listen("orphanage", FOUR, "127.0.0.1")
        for closes_too in (False, True):
            near, far = self._pair(listener, "127.0.0.1", FOUR)
            near.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    near.send(bytes(1 << 16))
            if closes_too:
                far.shutdown(socket.SHUT_WR)
            self._expect_without_file("last_ack" if closes_too else "fin_wait_1", near)
            near.close()


def _end(name: Any) -> tuple[bytes, int]:
    return unmapped(ipaddress.ip_address(name[0]).packed), name[1]


def by_diag() -> SocketScanner:
    """A scanner that asks sock_diag where it can."""
    return SocketScanner()


def by_proc() -> SocketScanner:
    """A scanner that reads /proc only."""
    return SocketScanner(use_diag=False)


def settled_rows(scanner: SocketScanner, every: EverySocket) -> list[Socket]:
    """The sockets of the namespace as soon as each is in its last state; else as they are after a
    while, for the caller to find the fault in."""
    deadline = time.monotonic() + WAIT_S
    while True:
        rows = scanner.scan(every.netns).sockets
        seen = {(s.state, s.local_port, s.remote_port) for s in rows if not s.inode}
        settled = every.without_file <= seen and set(every.expected.values()) <= set(rows)
        if settled or time.monotonic() > deadline:
            return rows
        time.sleep(0.01)


def differences(rounds: int = 20) -> Iterator[str]:
    """What the two sources tell differently of one moment: both are asked until it stands still."""
    netns = os.stat("/proc/thread-self/ns/net").st_ino
    fast, slow = by_diag(), by_proc()

    def rows(scanner: SocketScanner) -> list[Socket]:
        return sorted(scanner.scan(netns).sockets)

    for _ in range(rounds):
        before, told, after = rows(slow), rows(fast), rows(slow)
        if before == after:
            # As lists, so that a row too many counts as well.
            yield from _lacking("only /proc has", before, told)
            yield from _lacking("only sock_diag has", told, before)
            return
    raise TimeoutError("the namespace never stood still")


def _lacking(what: str, rows: list[Socket], others: list[Socket]) -> Iterator[str]:
    left = list(others)
    for row in rows:
        if row in left:
            left.remove(row)
        else:
            yield f"{what} {row}"
