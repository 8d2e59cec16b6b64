"""A small host with a known truth: who really sent and received each packet, and who is named.

Processes open, share, pass and close sockets on two ports, packets move in both directions, and the
ledger is told what the hooks and /proc would have told it. ``wrong()`` are the packets that were
credited to a process that cannot have moved them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from procnet.ledger.ledger import Ledger
from procnet.ledger.verdict import Verdict
from procnet.model import (
    TCP,
    UDP,
    EventKind,
    Evidence,
    FlowCount,
    FlowKey,
    OwnerEvent,
    ProcessId,
    Socket,
    SocketScan,
)
from tests.unit.ledger.world import MS, NETNS, T0, packed

HERE, THERE = packed("10.0.0.1"), packed("10.0.0.2")
WILD4, WILD6 = bytes(4), bytes(16)
PORTS = (4001, 4002)
REMOTES = (53, 59)
BOOT_NS = T0 - 10_000_000_000


class Packet:
    """``movers`` are those who may rightly be named; ``seen`` if a look ever showed its socket."""

    def __init__(self, count: FlowCount, sock: Sock | None, movers: set[ProcessId]) -> None:
        self.count = count
        self.sock = sock
        self.movers = movers
        self.look = 0
        # Who held the socket at the looks around it: others cannot be known of without events.
        self.seen: set[ProcessId] = set() if sock is None else set(sock.seen)
        self.verdict: Verdict | None = None
        self.read_ns = 0
        self.booked_ns = 0

    @property
    def unread(self) -> bool:
        """Nobody had taken it when it was booked."""
        return not self.count.sent and not 0 < self.read_ns <= self.booked_ns


class Sock:
    def __init__(self, inode: int, protocol: int, local: bytes, port: int, owner: ProcessId):
        self.inode = inode
        self.protocol = protocol
        self.local = local
        self.port = port
        self.remote = 0
        self.holders = {owner}
        self.ever = {owner}
        self.unread: list[Packet] = []
        self.listens = False
        # Who held it at the last look.
        self.seen: set[ProcessId] = set()
        self.accepted = True
        self.parent: Sock | None = None
        self.look = 0
        self.dead = -1
        # The tuple -> its last user, as the hooks remember it.
        self.users: dict[tuple[bytes, int], ProcessId] = {}
        # The same of a connection, which has one for each direction; the opener has sent nothing.
        self.sender: ProcessId | None = None
        self.receiver: ProcessId | None = None
        self.opener: ProcessId | None = None

    @property
    def connected(self) -> bool:
        return self.remote != 0


class Simulator:
    def __init__(self, seed: int, *, events: bool, reuse: bool = True) -> None:
        self.random = random.Random(seed)
        self.events_on = events
        self.reuse = reuse
        self.now = T0
        self.inode = 7000
        self.looks = 0
        self.pid = 1000
        self.alive: list[ProcessId] = []
        self.sockets: list[Sock] = []
        self.gone: list[Sock] = []
        self.born: list[Sock] = []
        self.packets: list[Packet] = []
        self.counts: list[FlowCount] = []
        self.events: list[OwnerEvent] = []
        self.ledger = Ledger()
        self.ledger.owners.boot_ns = BOOT_NS
        self.ledger._book = self._note(self.ledger._book)  # type: ignore[method-assign]
        for _ in range(3):
            self.spawn()
        self.look()

    def _note(self, book: Callable[[FlowCount, Verdict], None]) -> Callable[..., None]:
        def noted(count: FlowCount, verdict: Verdict) -> None:
            book(count, verdict)
            packet = self.packets[count.payload_bytes - 1]
            assert packet.verdict is None, "booked twice"
            packet.verdict, packet.booked_ns = verdict, self.now

        return noted

    def wrong(self) -> list[Packet]:
        named = [p for p in self.packets if p.verdict and p.verdict.process]
        wrong = [p for p in named if p.verdict and p.verdict.process not in p.movers]
        return [packet for packet in wrong if not self.cannot_know(packet)]

    def cannot_know(self, packet: Packet) -> bool:
        """What no ledger could have known by the time that it booked the packet."""
        assert packet.verdict is not None and packet.count.key is not None
        sock, key = packet.sock, packet.count.key
        if sock is None:
            # A port without a socket, which gets one or had one between the same two looks.
            return any(
                (born.protocol, born.port) == (key.protocol, key.local_port)
                and (born.look == packet.look or (born.dead == packet.look and not self.events_on))
                and packet.verdict.process in born.ever
                for born in self.born
            )
        if not self.events_on or packet.verdict.evidence is Evidence.LISTENER:
            return not packet.movers & packet.seen
        return packet.unread

    def run(self, steps: int) -> Simulator:
        actions = (
            [self.spawn, self.fork, self.exit, self.pass_on] + [self.open] * 3 + [self.close] * 2
            + [self.send] * 8 + [self.arrive] * 8 + [self.read] * 6 + [self.connect] * 2
            + [self.listen, self.syn, self.syn] + [self.accept] * 2 + [self.tick] * 4 + [self.look]
        )  # fmt: skip
        for _ in range(steps):
            self.now += int(self.random.choice((0.3, 1, 3, 20)) * MS * (1 + self.random.random()))
            self.random.choice(actions)()
        self.tick()
        self.look()
        self.ledger.settle(self.now, final=True)
        self.ledger.account()
        return self

    # --- processes ---

    def spawn(self) -> ProcessId:
        self.pid += 1
        start_ns = (self.now - BOOT_NS) // 10_000_000 * 10_000_000
        self.alive.append(ProcessId(self.pid, start_ns))
        return self.alive[-1]

    def fork(self) -> None:
        parent = self.random.choice(self.alive)
        child = self.spawn()
        for sock in self.sockets:
            if parent in sock.holders:
                self._hold(sock, child)

    def exit(self) -> None:
        if len(self.alive) > 2:
            process = self.random.choice(self.alive)
            self.alive.remove(process)
            for sock in list(self.sockets):
                if process in sock.holders:
                    self._let_go(sock, process)

    def pass_on(self) -> None:
        if self.sockets:
            sock = self.random.choice(self.sockets)
            if sock.accepted:
                self._hold(sock, self.random.choice(self.alive))

    def _hold(self, sock: Sock, process: ProcessId) -> None:
        sock.holders.add(process)
        sock.ever.add(process)
        for packet in sock.unread:
            packet.movers.add(process)

    # --- sockets ---

    def _add(self, sock: Sock) -> None:
        sock.look = self.looks
        self.sockets.append(sock)
        self.born.append(sock)

    def open(self) -> None:
        local = self.random.choice((HERE, WILD4, WILD4, WILD6))
        port = self.random.choice(PORTS)
        taken = [s for s in self.sockets if s.protocol == UDP and s.port == port]
        if taken and not self.reuse:
            return
        self.inode += 1
        owner = self.random.choice(self.alive)
        sock = Sock(self.inode, UDP, local, port, owner)
        self._add(sock)
        if self.random.random() < 0.2:
            sock.remote = self.random.choice(REMOTES)
            sock.local = HERE
            self._tell(sock, owner, EventKind.CONNECT, sock.remote)

    def close(self) -> None:
        usable = [sock for sock in self.sockets if sock.accepted]
        if usable:
            sock = self.random.choice(usable)
            self._let_go(sock, self.random.choice(sorted(sock.holders)))

    def _let_go(self, sock: Sock, process: ProcessId) -> None:
        sock.holders.discard(process)
        if sock.holders:
            return
        self._emit(sock, process, EventKind.CLOSE, sock.local, sock.remote)
        self.sockets.remove(sock)
        sock.dead = self.looks
        if sock.listens:
            for child in [s for s in self.sockets if s.parent is sock and not s.accepted]:
                self.sockets.remove(child)
        if sock.protocol == TCP and sock.connected:
            self.gone.append(sock)

    def _tell_connected(self, sock: Sock, process: ProcessId, kind: EventKind) -> None:
        """bpf/owners.bpf.c, send_tcp() and receive_tcp(); nothing waits in the queue."""
        if kind is EventKind.SEND:
            told = sock.sender or sock.receiver or sock.opener
            sends, receives = True, sock.receiver is None
            sock.sender = process
        else:
            told = sock.receiver
            sends, receives = sock.sender is None, True
            sock.receiver = process
        if told != process:
            self._emit(sock, process, kind, HERE, sock.remote, sends=sends, receives=receives)

    def _tell(self, sock: Sock, process: ProcessId, kind: EventKind, remote: int) -> None:
        if sock.protocol == TCP and kind is not EventKind.CONNECT:
            self._tell_connected(sock, process, kind)
            return
        if kind is EventKind.CONNECT:
            sock.opener = process
        local = HERE if kind is EventKind.RECEIVE else sock.local
        if sock.users.get((local, remote)) != process:
            sock.users[local, remote] = process
            self._emit(sock, process, kind, local, remote)

    def _emit(
        self,
        sock: Sock,
        process: ProcessId,
        kind: EventKind,
        local: bytes,
        remote: int,
        *,
        sends: bool = True,
        receives: bool = True,
    ) -> None:
        self.now += 1000
        there = THERE if remote else b""
        event = OwnerEvent(
            self.now, kind, NETNS, sock.protocol, local, sock.port, there, remote, sock.inode,
            process, "name", 0, 0, False, sends, receives,
        )  # fmt: skip
        if self.events_on:
            self.events.append(event)
        self.now += 1000

    # --- packets ---

    def _packet(
        self, sock: Sock | None, protocol: int, port: int, remote: int, *, sent: bool,
        movers: set[ProcessId], opens: bool = False,
    ) -> Packet:  # fmt: skip
        self.now += 20_000
        key = FlowKey(NETNS, protocol, HERE, port, THERE, remote)
        number = len(self.packets) + 1
        at_ns = self.now + self.random.randrange(-500, 500)
        count = FlowCount("eth0", key, sent, 1, number + 28, number, at_ns, at_ns, opens, None)
        packet = Packet(count, sock, set(movers))
        packet.look = self.looks
        self.packets.append(packet)
        self.counts.append(count)
        return packet

    def send(self) -> None:
        usable = [s for s in self.sockets if s.accepted and not s.listens]
        if not usable:
            return
        sock = self.random.choice(usable)
        process = self.random.choice(sorted(sock.holders))
        remote = sock.remote or self.random.choice(REMOTES)
        self._tell(sock, process, EventKind.SEND, remote)
        self._packet(sock, sock.protocol, sock.port, remote, sent=True, movers={process})

    def arrive(self) -> None:
        """A packet from outside, to whom the kernel would give it."""
        protocol, port = self.random.choice((TCP, UDP, UDP)), self.random.choice(PORTS)
        remote = self.random.choice(REMOTES)
        sock = self._receiver(protocol, port, remote)
        late = [
            s for s in self.gone
            if (s.protocol, s.port, s.remote) == (protocol, port, remote)
        ]  # fmt: skip
        if sock is None and protocol == TCP and late:
            self._packet(late[-1], TCP, port, remote, sent=False, movers=late[-1].ever)
            return
        for listening in self.sockets:
            if sock is None and protocol == TCP and listening.listens and listening.port == port:
                self._packet(listening, TCP, port, remote, sent=False, movers=listening.holders)
                return
        movers = set() if sock is None else set(sock.holders)
        if sock is not None and sock.parent is not None and not sock.accepted:
            movers |= sock.parent.holders
        packet = self._packet(sock, protocol, port, remote, sent=False, movers=movers)
        if sock is not None:
            sock.unread.append(packet)

    def _receiver(self, protocol: int, port: int, remote: int) -> Sock | None:
        found: list[tuple[int, Sock]] = []
        for sock in self.sockets:
            if (sock.protocol, sock.port) != (protocol, port) or sock.listens:
                continue
            if sock.connected:
                if sock.remote == remote:
                    found.append((3, sock))
            elif protocol == UDP:
                found.append(({HERE: 2, WILD4: 1, WILD6: 0}[sock.local], sock))
        best = [sock for score, sock in found if score == max(s for s, _ in found)]
        return self.random.choice(best) if best else None

    def read(self) -> None:
        full = [s for s in self.sockets if s.unread and s.accepted]
        if not full:
            return
        sock = self.random.choice(full)
        process = self.random.choice(sorted(sock.holders))
        for packet in sock.unread[: self.random.choice((1, 9))]:
            key = packet.count.key
            assert key is not None
            self._tell(sock, process, EventKind.RECEIVE, key.remote_port)
            if packet.count.opens:
                packet.movers.add(process)
            elif self.events_on:
                packet.movers = {process}
            packet.read_ns = self.now
            sock.unread.remove(packet)

    # --- TCP ---

    def _tcp_free(self, port: int, remote: int) -> bool:
        return not any((s.protocol, s.port, s.remote) == (TCP, port, remote) for s in self.sockets)

    def _tcp(self, port: int, remote: int, owner: ProcessId) -> Sock:
        self.inode += 1
        sock = Sock(self.inode, TCP, HERE, port, owner)
        sock.remote = remote
        self._add(sock)
        self.gone = [s for s in self.gone if (s.port, s.remote) != (port, remote)]
        return sock

    def connect(self) -> None:
        port, remote = self.random.choice(PORTS), self.random.choice(REMOTES)
        if not self._tcp_free(port, remote):
            return
        owner = self.random.choice(self.alive)
        sock = self._tcp(port, remote, owner)
        self._tell(sock, owner, EventKind.CONNECT, remote)
        self._packet(sock, TCP, port, remote, sent=True, movers={owner}, opens=True)
        if self.random.random() < 0.8:
            self._packet(sock, TCP, port, remote, sent=False, movers={owner})

    def listen(self) -> None:
        port = self.random.choice(PORTS)
        if not any(s.listens and s.port == port for s in self.sockets):
            self.inode += 1
            sock = Sock(self.inode, TCP, WILD4, port, self.random.choice(self.alive))
            sock.listens = True
            self._add(sock)

    def syn(self) -> None:
        port, remote = self.random.choice(PORTS), self.random.choice(REMOTES)
        listeners = [s for s in self.sockets if s.listens and s.port == port]
        if not listeners or not self._tcp_free(port, remote):
            return
        sock = self._tcp(port, remote, next(iter(listeners[0].holders)))
        sock.holders, sock.ever = set(), set()
        sock.accepted, sock.parent = False, listeners[0]
        movers = set(listeners[0].holders)
        packet = self._packet(sock, TCP, port, remote, sent=False, movers=movers, opens=True)
        sock.unread.append(packet)
        packet = self._packet(sock, TCP, port, remote, sent=True, movers=movers)
        packet.movers = sock.ever  # the handshake is of whoever gets the connection, or listens
        sock.ever |= movers

    def accept(self) -> None:
        waiting = [s for s in self.sockets if not s.accepted]
        if waiting:
            sock = self.random.choice(waiting)
            assert sock.parent is not None
            process = self.random.choice(sorted(sock.parent.holders))
            sock.accepted = True
            self._hold(sock, process)
            inode, sock.inode = sock.inode, 0
            self._emit(sock, process, EventKind.ACCEPT, HERE, sock.remote)
            sock.inode = inode

    # --- what the monitor does ---

    def tick(self) -> None:
        counts, self.counts = self.counts, []
        events, self.events = self.events, []
        self.ledger.count(counts)
        self.ledger.observe(events)
        self.ledger.settle(self.now)

    def look(self) -> None:
        self.tick()
        started_ns = self.now
        for packet in self.packets:
            if packet.look == self.looks and packet.sock in self.sockets:
                packet.seen |= packet.sock.holders
        self.looks += 1
        self.now += 2 * MS
        entries, holders = [], {}
        for sock in self.sockets:
            if not sock.accepted:
                continue
            sock.seen = set(sock.holders)
            state = "listen" if sock.listens else "established" if sock.remote else "unconnected"
            family = 6 if sock.local == WILD6 else 4
            remote = THERE if sock.remote else bytes(len(sock.local))
            entries.append(
                Socket(NETNS, sock.protocol, family, sock.local, sock.port, remote, sock.remote,
                       state, sock.inode, 0)
            )  # fmt: skip
            holders[sock.inode] = frozenset(sock.holders)
        self.ledger.look(SocketScan(started_ns, self.now, entries, holders, 0, 0))
        self.ledger.settle(self.now)
