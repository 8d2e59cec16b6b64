"""Owner events by CO-RE: one object, compiled when procnet was built, for every kernel with BTF."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from procnet import features
from procnet.bpf import cgroup, layout
from procnet.bpf.core_host import OBJECT, failed_program, find_obstacle, known_names, refusal
from procnet.bpf.host import Host, Obstacle
from procnet.bpf.snapshot import OPEN_SOCKET, decode_snapshot
from procnet.bpf.telling import Sources, Telling
from procnet.errors import LayoutError, LoadError
from procnet.model import UDP, UDPLITE, EventKind, Feature, OwnerEvent, SocketScan

if TYPE_CHECKING:
    from procnet.bpf.libbpf import BpfObject

# libbpf.py is imported where it is used: ctypes opens a library when it is imported, and
# `import procnet` must have no such effect.

_NAME = "core owners"
_CONTRACT = struct.Struct("=IIII")
_TRIES = 4
_NOTING = (1).to_bytes(4, sys.byteorder)

_log = logging.getLogger("procnet")


class Hook(NamedTuple):
    """A program of bpf/owners.bpf.c. ``needs`` is a name in the kernel's BTF, empty for none."""

    name: str
    program: str
    needs: str = ""
    cgroup: bool = False
    traces_function: bool = False
    on_demand: bool = False
    """Attached when there is something for it to do: it costs every packet of the host."""


def _cgroup(name: str) -> Hook:
    return Hook(f"cgroup {name}", f"on_{name}", cgroup=True)


def _tracepoint(name: str, program: str) -> Hook:
    return Hook(name, program, f"btf_trace_{name}")


def _function(name: str, program: str) -> Hook:
    return Hook(name, program, name, traces_function=True)


_CREATE = Hook("cgroup sock_create", "on_create", cgroup=True)
_CONNECT = Hook("sockops", "on_tcp_connect", cgroup=True)
_EGRESS = Hook("cgroup_skb egress", "on_egress", cgroup=True)
_INGRESS = Hook("cgroup_skb ingress", "on_ingress", cgroup=True, on_demand=True)
_RELEASE = Hook("cgroup sock_release", "on_release", cgroup=True)
_ITERATOR = "on_open_file"
_BUT_UDP, _AND_TCP = "_but_udp", "_and_tcp"
# Without one of these a flow would be named after its last user but one, and nobody would know.
_INDISPENSABLE = ("socket", "connect", "send", "TCP send", "TCP receive", "close")

# For each question the ways to answer it, the best first: one is used, with all of its hooks.
_QUESTIONS: dict[str, tuple[tuple[Hook, ...], ...]] = {
    "socket": ((_CREATE,),),
    "connect": ((_CONNECT,),),
    "send": ((_EGRESS,),),
    "TCP send": (
        (_tracepoint("tcp_sendmsg_locked", "on_tcp_sendmsg_locked"),),
        (_function("tcp_sendmsg", "on_tcp_sendmsg"), _function("tcp_sendpage", "on_tcp_sendpage")),
        (_function("tcp_sendmsg", "on_tcp_sendmsg"),),
        (_tracepoint("sock_send_length", "on_tcp_send_length"),),
    ),
    "TCP receive": ((_tracepoint("tcp_rcv_space_adjust", "on_tcp_receive"),),),
    "UDP receive": (
        (_function("skb_consume_udp", "on_skb_consume_udp"),),
        (_cgroup("recvmsg4"), _cgroup("recvmsg6"), _INGRESS),
    ),
    "receive": ((_tracepoint("sock_recv_length", "on_receive_length"),),),
    "accept": (
        (_function("security_sock_graft", "on_sock_graft"),),
        (_cgroup("getpeername4"), _cgroup("getpeername6")),
    ),
    "close": ((_RELEASE,),),
    "injection": ((_tracepoint("net_dev_queue", "on_queue"),),),
    "program": ((_tracepoint("sched_process_exec", "on_exec"),),),
}
# A connection that nobody has used is taken for one that is just being accepted: not before those
# that are older than we are have been seen.
_AFTER_THE_SNAPSHOT = ("accept", "close")


class Choice(NamedTuple):
    """The hooks to load, in the order to attach them, and why there are no others."""

    first: tuple[Hook, ...]
    later: tuple[Hook, ...]
    missing: dict[str, str]

    @property
    def hooks(self) -> tuple[Hook, ...]:
        return self.first + self.later


def choose(names: bytes, traces_functions: bool, refused: dict[str, str]) -> Choice:
    """For each question the best answer that the kernel has names for and has not refused.

    ``names`` is its BTF; ``refused`` says of programs why not.
    """
    first: list[Hook] = []
    later: list[Hook] = []
    missing: dict[str, str] = {}
    for question, answers in _QUESTIONS.items():
        why: dict[str, str] = {}
        for hooks in answers:
            here = {hook.name: _absence(hook, names, traces_functions, refused) for hook in hooks}
            if not any(here.values()):
                (later if question in _AFTER_THE_SNAPSHOT else first).extend(hooks)
                break
            why.update({name: reason for name, reason in here.items() if reason})
        else:
            missing[question] = ", ".join(f"{name}: {reason}" for name, reason in why.items())
    programs = frozenset(hook.program for hook in first)
    first = [hook._replace(program=_variant(hook.program, programs)) for hook in first]
    return Choice(tuple(first), tuple(later), missing)


def _variant(program: str, programs: frozenset[str]) -> str:
    """The program to load for one that is to share its work with the others that were chosen."""
    if program == "on_receive_length" and "on_skb_consume_udp" in programs:
        return program + _BUT_UDP  # datagrams are told by the other one, with their peer
    if program == "on_egress" and "on_tcp_send_length" in programs:
        return program + _AND_TCP  # the other one is late
    return program


def _absence(hook: Hook, names: bytes, traces_functions: bool, refused: dict[str, str]) -> str:
    if hook.program in refused:
        return refused[hook.program]
    if hook.traces_function and not traces_functions:
        return "the kernel loads no fentry programs"
    if hook.needs and b"\0" + hook.needs.encode() + b"\0" not in names:
        return "the kernel does not have it"
    return ""


def check_contract(contract: bytes) -> None:
    """Raises LayoutError unless the object writes the records that we read."""
    expected = _CONTRACT.pack(
        layout.LAYOUT, layout.OWNER_EVENT.size, layout.PROCESS.size, OPEN_SOCKET.size
    )
    if contract[: _CONTRACT.size] != expected:
        raise LayoutError(
            f"{OBJECT.name} has another layout of records than procnet's Python modules: reinstall"
            " procnet, they are not of one version"
        )


class _Loaded(NamedTuple):
    choice: Choice
    bpf: BpfObject


def _load(host: Host, image: bytes, ring_bytes: int | None) -> _Loaded:
    """Loads and attaches what the kernel takes of it; what it refuses is left out and tried anew.

    Raises LoadError if that is a program that cannot be done without.
    """
    from procnet.bpf import libbpf

    traces_functions = libbpf.can_trace_functions()
    refused: dict[str, str] = {}
    said = ""
    root = cgroup.open_root(host.proc_root)
    try:
        for _ in range(_TRIES):
            # The names are megabytes, and not kept: libbpf is about to read them too.
            choice = choose(known_names(host), traces_functions, refused)
            lacking = [question for question in _INDISPENSABLE if question in choice.missing]
            if lacking:
                why = "; ".join(f"{question} ({choice.missing[question]})" for question in lacking)
                raise LoadError(f"there is no hook for {why}{said}")
            bpf = libbpf.BpfObject(image)
            try:
                _start(bpf, choice, root, ring_bytes)
                return _Loaded(choice, bpf)
            except _RefusedError as error:
                bpf.close()
                if error.program in refused or error.program in (_ITERATOR, ""):
                    raise
                why, _, log = str(error).partition("\n")
                program = error.program.removesuffix(_BUT_UDP).removesuffix(_AND_TCP)
                refused[program] = why
                said = f"\n{log}"
            except BaseException:
                bpf.close()
                raise
    finally:
        os.close(root)
    raise LoadError(f"the kernel refused one program after the other: {refused}")


class _RefusedError(LoadError):
    """Which program the kernel refused, to try without it; empty if nobody says."""

    def __init__(self, error: LoadError, program: str) -> None:
        super().__init__(str(error))
        self.program = program


def _start(bpf: BpfObject, choice: Choice, root: int, ring_bytes: int | None) -> None:
    check_contract(bpf.initial_value(".rodata.contract"))
    if ring_bytes is not None:
        bpf.resize("events", ring_bytes)
    bpf.choose(frozenset(hook.program for hook in choice.hooks) | {_ITERATOR})
    try:
        bpf.load()
    except LoadError as error:
        raise _RefusedError(error, failed_program(error)) from error
    for hook in choice.first:
        if not hook.on_demand:
            _attach(bpf, hook, root)
    bpf.run_iterator(_ITERATOR)
    for hook in choice.later:
        _attach(bpf, hook, root)


def _attach(bpf: BpfObject, hook: Hook, root: int) -> None:
    try:
        if hook.cgroup:
            bpf.attach_cgroup(hook.program, root)
        else:
            bpf.attach(hook.program)
    except LoadError as error:
        raise _RefusedError(error, hook.program) from error


def probe(host: Host | None = None, image: Path = OBJECT) -> Feature:
    """Whether this host can have CO-RE owners: by looking, then by loading and attaching them."""
    host = host or Host()
    obstacle = find_obstacle(host, image)
    if obstacle is None:
        try:
            loaded = _load(host, image.read_bytes(), None)
        except LoadError as error:
            obstacle = refusal(error, host)
        else:
            loaded.bpf.close()
            return _feature(loaded.choice)
    return features.no(_NAME, obstacle.reason, obstacle.remedy)


def promise(host: Host | None = None, image: Path = OBJECT) -> Feature:
    """The same by looking alone, in a millisecond: no, or worth a try."""
    obstacle = find_obstacle(host or Host(), image)
    if obstacle is None:
        return features.unknown(_NAME, "nothing speaks against it")
    return features.no(_NAME, obstacle.reason, obstacle.remedy)


def _feature(choice: Choice) -> Feature:
    late = [hook.name for hook in choice.hooks if hook.on_demand]
    reason = f"{len(choice.hooks) - len(late)} hooks attached"
    if late:
        reason += f", {', '.join(late)} on demand"
    if choice.missing:
        missing = "; ".join(f"{question} ({why})" for question, why in choice.missing.items())
        reason += f"; without {missing}"
    return features.yes(_NAME, reason)


class CoreOwners(Telling):
    """Who uses which socket, told as it happens. Any thread may read or close it."""

    def __init__(
        self, loaded: _Loaded, sources: Sources, proc_root: Path, held: contextlib.ExitStack
    ) -> None:
        """Use open()."""
        self._choice = loaded.choice
        self._bpf = loaded.bpf
        self._proc_root = proc_root
        self._on_demand = [hook for hook in loaded.choice.hooks if hook.on_demand]
        super().__init__(sources, held)

    @classmethod
    def open(
        cls, host: Host | None = None, image: Path = OBJECT, ring_bytes: int | None = None
    ) -> CoreOwners:
        """Load and attach; a tenth of a second. Sockets that are open already are noted.

        ``ring_bytes``: another size than 4 MiB, a power of two of at least a page. Raises
        UnsupportedError, AccessError or LoadError: what is missing and what to do.
        """
        host = host or Host()
        obstacle = find_obstacle(host, image)
        if obstacle is not None:
            raise _as_error(obstacle)
        try:
            loaded = _load(host, image.read_bytes(), ring_bytes)
        except LayoutError:
            raise
        except LoadError as error:
            raise _as_error(refusal(error, host)) from error
        with contextlib.ExitStack() as held:
            held.callback(loaded.bpf.close)
            events, processes, lost = (
                loaded.bpf.map_descriptor(name) for name in ("events", "processes", "lost")
            )
            sources = Sources.open(events, processes, lost, host.proc_root, held)
            return cls(loaded, sources, host.proc_root, held.pop_all())

    @property
    def hooks(self) -> tuple[str, ...]:
        """Those that are attached now."""
        return tuple(hook.name for hook in self._choice.hooks if hook not in self._on_demand)

    @property
    def missing_hooks(self) -> tuple[str, ...]:
        """Questions that no hook of this kernel answers; feature() says why."""
        return tuple(self._choice.missing)

    @property
    def turns_descriptor(self) -> int | None:
        """The map that tells when an owner may have changed (bpf/turns.h); None if closed, or if
        this object has none."""
        with self._lock:
            closed = self._final_loss is not None
            if closed or "turns" not in self._bpf.maps:
                return None
            return self._bpf.map_descriptor("turns")

    def read(self) -> list[OwnerEvent]:
        """What has happened since the last call, oldest first; never waits, empty when closed.

        Raises LayoutError if the kernel's records are not ours.
        """
        events = super().read()
        if self._on_demand and any(_took_of_somebody(event) for event in events):
            self._attach_on_demand()
        return events

    def _attach_on_demand(self) -> None:
        with self._lock:
            hooks, self._on_demand = self._on_demand, []
            if self._final_loss is not None:
                return
            try:
                root = cgroup.open_root(self._proc_root)
                try:
                    for hook in hooks:
                        _attach(self._bpf, hook, root)
                finally:
                    os.close(root)
                with mmap.mmap(self._bpf.map_descriptor("noting"), mmap.PAGESIZE) as noting:
                    noting[0:4] = _NOTING
            except (LoadError, OSError) as error:
                why = str(error).partition("\n")[0]
                _log.warning("who takes which datagram may stay unknown: %s", why)
                self._choice.missing["which flow waits"] = why

    def feature(self) -> Feature:
        """What it is, with what is missing of it."""
        return _feature(self._choice)

    def snapshot(self, netns: int | None = None) -> SocketScan:
        """Every socket that a process has open now, with all of them: a look, by the kernel itself.

        ``netns``: of that namespace alone. Empty when closed. Raises LoadError.
        """
        started_ns = time.time_ns()
        with self._lock:
            closed = self._final_loss is not None
            rows = b"" if closed else self._bpf.run_iterator(_ITERATOR)
        return decode_snapshot(rows, started_ns, time.time_ns(), netns)


def _took_of_somebody(event: OwnerEvent) -> bool:
    """Has a process taken a datagram without asking from whom?"""
    return (
        event.kind is EventKind.RECEIVE
        and not event.remote_address
        and event.protocol in (UDP, UDPLITE)
    )


def _as_error(obstacle: Obstacle) -> Exception:
    return obstacle.error(f"CO-RE: {obstacle.reason}; {obstacle.remedy}")
