"""The values that cross rooms. Nothing else does.

Units are in the names. Every ``*_ns`` is nanoseconds of the wall clock (since 1970), as libpcap
stamps packets; but ``start_time_ns`` is since boot, as the kernel identifies a process by.

Addresses inside rooms are packed bytes, 4 or 16 long; an IPv4-mapped IPv6 address is stored as its
IPv4 address. The rows of a report carry addresses as text.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

ICMP, TCP, UDP, ICMP6, SCTP, UDPLITE = 1, 6, 17, 58, 132, 136

IPV4_WILDCARD = bytes(4)
IPV6_WILDCARD = bytes(16)
MAPPED_PREFIX = bytes(10) + b"\xff\xff"
"""How an IPv6 address begins that stands for an IPv4 one: ::ffff:0:0/96 (RFC 4291)."""

CLOCK_TICK_NS = 10_000_000
"""Of a process's start time, rounded down: USER_HZ is 100 everywhere (asm-generic/param.h)."""


def unmapped(address: bytes) -> bytes:
    """The packed address, an IPv4-mapped IPv6 one turned into IPv4."""
    if len(address) == 16 and address.startswith(MAPPED_PREFIX):
        return address[12:]
    return address


class UnmappedAddresses(dict[bytes, bytes]):
    """What ``unmapped`` gives: a table has many rows and few addresses, and a hit costs no call."""

    def __missing__(self, address: bytes) -> bytes:
        result = self[address] = unmapped(address)
        return result


class Evidence(enum.Enum):
    """How we know an owner, best first."""

    KERNEL_EVENT = "KERNEL_EVENT"
    """A hook ran in the owner's own context."""
    KERNEL_SNAPSHOT = "KERNEL_SNAPSHOT"
    """A BPF iterator saw the socket in the owner's file table."""
    SOCKET_SCAN = "SOCKET_SCAN"
    """sock_diag or /proc showed the socket in the owner's file table."""
    LISTENER = "LISTENER"
    """Handshake, or not yet accepted: the process that listens."""

    @property
    def rank(self) -> int:
        """0 for the best witness; higher is weaker."""
        return _EVIDENCE_ORDER.index(self)


_EVIDENCE_ORDER = list(Evidence)


class Reason(enum.Enum):
    """Why bytes have no owner."""

    NO_SOCKET = "NO_SOCKET"
    """No socket was seen that could have moved them."""
    AMBIGUOUS = "AMBIGUOUS"
    """Several processes could have, and nothing says which one did."""
    FORWARDED = "FORWARDED"
    """Neither end is an address of this host, or it is translated for another one (NAT)."""
    KERNEL = "KERNEL"
    """A socket of the kernel itself."""
    NOT_IP = "NOT_IP"
    """Not an IP packet (ARP, for example)."""
    UNDECODABLE = "UNDECODABLE"
    """A packet that says it is IP and is not, or is cut short."""
    EVICTED = "EVICTED"
    """A full table let go of the row that knew, or of the run before every witness was heard."""
    PENDING = "PENDING"
    """Counted, and still waiting for the witness of the next tick."""

    # There is one object of each; Enum's own hash is a function in Python, for every row booked.
    __hash__ = object.__hash__


class ProcessId(NamedTuple):
    """Who, beyond doubt: a pid is used again, a pid with its start time is not.

    ``start_time_ns`` is nanoseconds since boot, rounded down to the tick of 10 ms that
    /proc/PID/stat counts in, whichever source it came from.
    """

    pid: int
    start_time_ns: int


class FlowKey(NamedTuple):
    """A flow, seen from its socket. ``netns``: an inode; empty ``remote_address``: any of many."""

    netns: int
    protocol: int
    local_address: bytes
    local_port: int
    remote_address: bytes
    remote_port: int


class Segment(NamedTuple):
    """What decoding one frame tells.

    ``wire_bytes`` are IP bytes, header included; ``payload_bytes`` are those above the transport
    header (above the IP headers for a protocol without one that we know). ``opens`` is true for a
    TCP SYN without ACK: a new connection begins, whatever used the five-tuple before. Ports are 0
    where the protocol has none; an ICMP echo carries its id as both.
    """

    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    destination_port: int
    wire_bytes: int
    payload_bytes: int
    opens: bool


class Skip(NamedTuple):
    """A frame that belongs to no flow: ``NOT_IP`` or ``UNDECODABLE``.

    ``wire_bytes`` is the frame without its link header. ``why`` is for a person to read.
    """

    reason: Reason
    wire_bytes: int
    why: str


class FlowCount(NamedTuple):
    """Packets of one flow in one direction that came without a pause: what counters hand over.

    ``key`` is None for what belongs to no flow (``reason`` says why); ``reason`` is otherwise None,
    or ``FORWARDED``. ``opens``: the first packet is a TCP SYN without ACK. Sockets: no interface.
    """

    interface: str
    key: FlowKey | None
    sent: bool
    packets: int
    wire_bytes: int
    payload_bytes: int
    first_ns: int
    last_ns: int
    opens: bool
    reason: Reason | None


Ends = tuple[int, bytes, int, bytes, int]
"""Protocol, source, source port, destination and destination port, as a packet has them."""


class Translation(NamedTuple):
    """A connection that this host translates (NAT): its ends on the side of the one who began it,
    who is the source, and on the other. ``id``: the kernel's, for as long as it is kept."""

    id: int
    near: Ends
    far: Ends


CountedEnds = tuple[bytes, bytes, bytes, bytes, int, int, int, bool, int]
"""Source and destination, each in two pieces: 12 bytes, which are ``MAPPED_PREFIX`` for IPv4, and
the other 4; their ports, protocol, whether this host gave it to the interface, its index."""

CountedSums = tuple[int, int, int, int, int, bool]
"""Packets, wire bytes, payload bytes, first and last time in nanoseconds since boot, and whether
the first packet is a TCP SYN without ACK."""


class Counted(NamedTuple):
    """What the kernel counted: packets between two ends that one interface saw go one way.

    Not yet a flow's: whether it was sent or received is for ``capture`` to say. A hundred thousand
    entries are taken out at once, so they come in batches (how many, and what), which are as small
    as in the kernel until they are iterated, and an entry is two plain tuples of ``struct``.
    ``evicted`` found the kernel's table full: interface, whether it was outgoing, sums. ``boot_ns``
    is the wall-clock time of the boot.
    """

    boot_ns: int
    batches: list[tuple[int, Iterable[tuple[CountedEnds, CountedSums]]]]
    evicted: list[tuple[int, bool, CountedSums]]


class EventKind(enum.IntEnum):
    """What the owner did. The numbers are those of ``enum procnet_event_kind`` in bpf/procnet.h."""

    CONNECT = 1
    """A connection is being opened; its first packet has not left yet."""
    ACCEPT = 2
    """A listening process took a connection."""
    SEND = 3
    """A process sends; the packet has not left yet."""
    RECEIVE = 4
    """A process takes what had arrived before."""
    CLOSE = 5
    """The last holder closed the socket; packets may still follow (FIN, RST)."""
    INJECT = 6
    """A process sends a frame of its own making (packet(7)), whoever else has its five-tuple."""


class OwnerEvent(NamedTuple):
    """A process used a socket, told by the kernel at that moment.

    ``local_address`` may be a wildcard (of the socket's own family) and ``remote_address`` empty
    with ``remote_port`` 0 where the socket is not connected and the hook does not know the peer.
    ``inode`` is the number in ``socket:[...]`` of /proc/PID/fd, 0 where there is none yet.
    ``kernel`` is true for a kernel thread, which has no process to name. ``sends`` and ``receives``
    say what of the socket the process has from here on; ``shared`` that bytes of others leave among
    its own, and nobody can tell which; but if there are ``packet_bytes``, ``part_bytes`` of so many
    in the next packet are its own. ``left``: what had the port before has no more to send. A close
    that is ``shared`` still has packets to send. ``born_ns``: as in ``SocketScan``, 0 if not known.
    """

    time_ns: int
    kind: EventKind
    netns: int
    protocol: int
    local_address: bytes
    local_port: int
    remote_address: bytes
    remote_port: int
    inode: int
    process: ProcessId
    name: str
    uid: int
    cgroup_id: int
    kernel: bool
    sends: bool = True
    receives: bool = True
    shared: bool = False
    part_bytes: int = 0
    packet_bytes: int = 0
    left: bool = False
    born_ns: int = 0


class Socket(NamedTuple):
    """A socket as the kernel's tables show it (/proc/net/*, sock_diag).

    ``family`` is the table's: 4, 6, or 0 for a packet socket; ``state`` as ``ss`` has it, in lower
    case (``unconnected`` for UDP). If not connected, it has a wildcard remote address and port 0.
    ``send_queue_bytes``: of a TCP connection, not acknowledged; 0 in a kernel snapshot.
    """

    netns: int
    protocol: int
    family: int
    local_address: bytes
    local_port: int
    remote_address: bytes
    remote_port: int
    state: str
    inode: int
    uid: int
    send_queue_bytes: int = 0


class SocketScan(NamedTuple):
    """One look at the sockets and at who holds them; ``evidence`` is what that is worth.

    ``holders`` maps an inode to every process that has it open, if any has. ``vanished_processes``
    went away while they were read; ``denied_processes`` could not be read for want of privilege.
    ``births``: of some inodes, since when what came in may have been for the socket.
    """

    started_ns: int
    ended_ns: int
    sockets: list[Socket]
    holders: Mapping[int, frozenset[ProcessId]]
    vanished_processes: int
    denied_processes: int
    forked: frozenset[ProcessId] | None = frozenset()
    """Holders, now or before, of whom a child, or another of their parent, that no look has shown
    may have used what they share, or a socket on the same port. None where every use is told."""
    left_behind: frozenset[int] = frozenset()
    """Inodes of connections whose send queue may have bytes of a process that let go of them."""
    reached: frozenset[ProcessId] = frozenset()
    """Into these another process may have passed a socket, over a Unix socket."""
    evidence: Evidence = Evidence.SOCKET_SCAN
    births: Mapping[int, int] = MappingProxyType({})
    malformed_rows: int = 0
    """Rows of the kernel's tables that could not be understood: a socket may be missing."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process as a person knows it. Text fields are empty where nothing could be learnt.

    ``name`` is the main thread's comm (at most 15 bytes); bytes that are not UTF-8 appear as
    ``\\xNN``. ``cmdline`` is argv. ``parent_pid`` is 0 and ``uid`` None where unknown.
    """

    pid: int
    start_time_ns: int
    name: str
    exe: str = ""
    cmdline: tuple[str, ...] = ()
    uid: int | None = None
    user: str = ""
    parent_pid: int = 0
    cgroup: str = ""
    container: str = ""

    @property
    def id(self) -> ProcessId:
        """(pid, start time): equal only for the same process."""
        return ProcessId(self.pid, self.start_time_ns)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What moved in one direction. Wire bytes are IP bytes, header included."""

    packets: int = 0
    wire_bytes: int = 0
    payload_bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        packets, wire_bytes = self.packets + other.packets, self.wire_bytes + other.wire_bytes
        return Traffic(packets, wire_bytes, self.payload_bytes + other.payload_bytes)


@dataclass(frozen=True, slots=True)
class Loss:
    """What we know we did not see, or could not keep. Every figure only grows."""

    capture_dropped_packets: int = 0
    """Dropped by the kernel because we read too slowly."""
    events_lost: int = 0
    """Owner events that found the ring full, or whose hook the kernel passed over because it ran
    already on that CPU."""
    undecodable_packets: int = 0
    """Counted as ``UNDECODABLE``."""
    evicted_flows: int = 0
    """Flow rows that a full table let go; their bytes stay in the totals."""
    evicted_runs: int = 0
    """Runs of packets that could not wait for their owner for want of room: ``EVICTED``."""
    evicted_owners: int = 0
    """Endpoints whose owner a full table forgot."""
    vanished_processes: int = 0
    """Processes that ended while /proc was read: their sockets may lack a holder."""
    denied_processes: int = 0
    """Processes whose files we may not read, at the last look."""
    malformed_rows: int = 0
    """Rows of the kernel's socket tables that could not be understood."""
    processes_lost: int = 0
    """Times that the ring was full and a process not described: its name may be all there is."""
    translations_lost: int = 0
    """Times that the kernel could not tell of all translated connections, that what it told could
    not be understood, or that a table was full."""
    unsplit_packets: int = 0
    """Of sockets with too many remote ends at once: theirs is unknown."""
    interrupted_captures: int = 0
    """Times an interface went away and its capture had to be opened anew."""
    failures: int = 0
    """Steps of a thread of ours that failed; the log says how, once if it goes on."""


class Support(enum.Enum):
    """A probe's answer. ``UNKNOWN`` is for a probe that could not be made."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that a host can or cannot do, why, and what to do about a no."""

    name: str
    support: Support
    reason: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Features:
    """Which rung of the ladder is in use, and why the better ones are not.

    ``counting`` and ``owners`` name the rung in use (``python``; ``kprobe``, ``proc``), empty where
    none can be had. ``rungs`` are all of them, best first.
    """

    counting: str
    owners: str
    rungs: tuple[Feature, ...] = field(default=())
