"""Owner events by CO-RE: one object, compiled when procnet was built, for every kernel with BTF."""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from procnet import features
from procnet.bpf import cgroup, layout, socket_counts
from procnet.bpf.clocks import boot_to_wall_ns
from procnet.bpf.core_hooks import COUNTING, INDISPENSABLE, Choice, Hook, choose, unvaried
from procnet.bpf.core_host import (
    OBJECT,
    demanded,
    failed_program,
    find_obstacle,
    known_names,
    refusal,
)
from procnet.bpf.host import Host, promised
from procnet.bpf.snapshot import OPEN_SOCKET, decode_snapshot
from procnet.bpf.socket_counts import SocketCounts
from procnet.bpf.telling import Sources, Telling
from procnet.errors import LoadError
from procnet.model import UDP, UDPLITE, EventKind, Feature, OwnerEvent, SocketScan

if TYPE_CHECKING:
    from procnet.bpf.libbpf import BpfObject

# libbpf.py is imported where it is used: ctypes opens a library when it is imported, and
# `import procnet` must have no such effect.

RECORDS_BYTES = (layout.OWNER_EVENT.size, layout.PROCESS.size, OPEN_SOCKET.size)
"""What the object says of its records in ``.rodata.contract``, after the layout."""

_NAME = "core owners"
_TRIES = 4
_ITERATOR = "on_open_file"
_PASSED_OVER_FOR_NOTHING = ("on_queue",)
"""What a softirq sends in the middle of it is of no AF_PACKET socket."""
_YES = (1).to_bytes(4, sys.byteorder)

COUNTING_AT_SOCKETS = features.yes(
    "socket counting",
    "the hooks could be attached: every socket of every network namespace, without capturing",
)
"""What there is to say of it where it works."""
COUNTING_AT_SOCKETS_HERE = features.yes(
    COUNTING_AT_SOCKETS.name,
    "the hooks could be attached: every socket of this network namespace, without capturing",
)
"""The same if that is all that was asked for."""

_log = logging.getLogger("procnet")


class _Loaded(NamedTuple):
    choice: Choice
    bpf: BpfObject


class _Wanted(NamedTuple):
    """How the hooks shall be, beside what the kernel takes."""

    ring_bytes: int | None = None
    netns: int = 0
    counting: bool = False
    remotes: int | None = None


def _load(host: Host, image: bytes, wanted: _Wanted) -> _Loaded:
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
            names = known_names(host)
            choice = choose(names, traces_functions, refused, counting=wanted.counting)
            needed = (*INDISPENSABLE, *COUNTING) if wanted.counting else INDISPENSABLE
            lacking = [question for question in needed if question in choice.missing]
            if lacking:
                why = "; ".join(f"{question} ({choice.missing[question]})" for question in lacking)
                raise LoadError(f"there is no hook for {why}{said}")
            bpf = libbpf.BpfObject(image)
            try:
                _start(bpf, choice, root, wanted)
                return _Loaded(choice, bpf)
            except _RefusedError as error:
                bpf.close()
                if error.program in refused or error.program in (
                    _ITERATOR, socket_counts.ITERATOR, ""
                ):  # fmt: skip
                    raise
                why, _, log = str(error).partition("\n")
                refused[unvaried(error.program)] = why
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


def _start(bpf: BpfObject, choice: Choice, root: int, wanted: _Wanted) -> None:
    layout.check_contract(OBJECT.name, bpf.initial_value(".rodata.contract"), RECORDS_BYTES)
    bpf.set_constant(".rodata.netns", wanted.netns.to_bytes(4, sys.byteorder))
    if wanted.ring_bytes is not None:
        bpf.resize("events", wanted.ring_bytes)
    iterators = {_ITERATOR}
    if wanted.counting:
        contract = bpf.initial_value(".rodata.counts")
        layout.check_contract(OBJECT.name, contract, socket_counts.RECORDS_BYTES)
        bpf.set_constant(".rodata.counting", _YES)
        if wanted.remotes is not None:
            for name in socket_counts.TABLES:
                bpf.resize(name, wanted.remotes)
        iterators.add(socket_counts.ITERATOR)
    else:
        for name in socket_counts.MAPS:
            bpf.leave_out(name)
    bpf.choose(frozenset(hook.program for hook in choice.hooks) | iterators)
    try:
        bpf.load()
    except LoadError as error:
        raise _RefusedError(error, failed_program(error)) from error
    for hook in choice.first:
        if not hook.on_demand:
            _attach(bpf, hook, root)
    for _ in bpf.run_iterator(_ITERATOR):
        pass  # it notes what it finds, and nobody is told
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
            loaded = _load(host, image.read_bytes(), _Wanted())
        except LoadError as error:
            obstacle = refusal(error, host)
        else:
            loaded.bpf.close()
            return _feature(loaded.choice)
    return obstacle.as_feature(_NAME)


def probe_counting(host: Host | None = None, image: Path = OBJECT) -> Feature:
    """Whether it can count at the sockets too, by loading and attaching that."""
    host = host or Host()
    obstacle = find_obstacle(host, image)
    if obstacle is None:
        try:
            _load(host, image.read_bytes(), _Wanted(counting=True)).bpf.close()
        except LoadError as error:
            obstacle = refusal(error, host)
        else:
            return COUNTING_AT_SOCKETS
    return obstacle.as_feature(COUNTING_AT_SOCKETS.name)


def promise_counting(host: Host | None = None, image: Path = OBJECT) -> Feature:
    """The same by looking alone."""
    return promised(COUNTING_AT_SOCKETS.name, find_obstacle(host or Host(), image))


def promise(host: Host | None = None, image: Path = OBJECT) -> Feature:
    """The same by looking alone, in a millisecond: no, or worth a try."""
    return promised(_NAME, find_obstacle(host or Host(), image))


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
        self,
        loaded: _Loaded,
        sources: Sources,
        counts: SocketCounts | None,
        proc_root: Path,
        held: contextlib.ExitStack,
    ) -> None:
        """Use open()."""
        self.counts = counts
        """What every socket moves, if that is counted; closed with this at the latest."""
        self._choice = loaded.choice
        self._bpf = loaded.bpf
        self._proc_root = proc_root
        self._on_demand = [hook for hook in loaded.choice.hooks if hook.on_demand]
        # The kernel passes over a tracing program that runs already on the CPU (bpf_prog.active,
        # 5.12, 9ed9e9ba2337): for a softirq in the middle of it, or another task if it is
        # preemptible.
        self._passed_over = 0
        self._may_be_passed_over = [
            hook.program
            for hook in loaded.choice.hooks
            if not hook.cgroup and hook.program not in _PASSED_OVER_FOR_NOTHING
        ]
        super().__init__(sources, held)

    @classmethod
    def open(
        cls,
        host: Host | None = None,
        image: Path = OBJECT,
        ring_bytes: int | None = None,
        *,
        netns: int | None = None,
        counting: bool = False,
        remotes: int | None = None,
    ) -> CoreOwners:
        """Load and attach; a tenth of a second. Sockets that are open already are noted.

        ``ring_bytes``: another size than 4 MiB, a power of two of at least a page. ``netns``: the
        inode of the only network namespace to tell of; sockets of others take no room anywhere.
        ``counting``: what every socket moves is counted too, with room for ``remotes`` remote ends,
        65,536 if it is None, between two readings. Raises UnsupportedError, AccessError or
        LoadError: what is missing and what to do.
        """
        host = host or Host()
        wanted = _Wanted(ring_bytes, netns or 0, counting, remotes)
        with demanded("CO-RE", host, image):
            loaded = _load(host, image.read_bytes(), wanted)
        with contextlib.ExitStack() as held:
            held.callback(loaded.bpf.close)
            events, processes, lost = (
                loaded.bpf.map_descriptor(name) for name in ("events", "processes", "lost")
            )
            sources = Sources.open(events, processes, lost, host.proc_root, held)
            counts = None
            if counting:
                counts = SocketCounts(loaded.bpf, host.proc_root)
                held.callback(counts.close)
            return cls(loaded, sources, counts, host.proc_root, held.pop_all())

    def _read_events_lost(self) -> int:
        # Before 5.19 that takes CAP_BPF too, which the program may have given up since.
        with contextlib.suppress(LoadError):
            infos = map(self._bpf.program_info, self._may_be_passed_over)
            self._passed_over = sum(info.recursion_misses for info in infos)
        return super()._read_events_lost() + self._passed_over

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
        """The map that tells when an owner may have changed (bpf/turns.h); None if closed."""
        with self._lock:
            closed = self._final_loss is not None
            return None if closed else self._bpf.map_descriptor("turns")

    def read(self) -> list[OwnerEvent]:
        """What has happened since the last call, oldest first; never waits, empty when closed."""
        events = super().read()
        if self._on_demand and any(_took_of_somebody(event) for event in events):
            self._attach_on_demand()
        return events

    def _attach_on_demand(self) -> None:
        with self._lock:
            if self._final_loss is not None:
                return
            hooks, self._on_demand = self._on_demand, []
            try:
                with mmap.mmap(self._bpf.map_descriptor("noting"), mmap.PAGESIZE) as noting:
                    root = cgroup.open_root(self._proc_root)
                    try:
                        for hook in hooks:
                            _attach(self._bpf, hook, root)
                    finally:
                        os.close(root)
                    noting[0:4] = _YES
            except (LoadError, OSError) as error:
                why = str(error).partition("\n")[0]
                _log.warning("who takes which datagram may stay unknown: %s", why)
                self._choice = self._choice.without(hooks, "which flow waits", why)

    def feature(self) -> Feature:
        """What it is, with what is missing of it."""
        return _feature(self._choice)

    def snapshot(self) -> SocketScan:
        """Every socket that a process has open now, with all of them: a look, by the kernel itself.

        Empty when closed. Raises LoadError.
        """
        started_ns = time.time_ns()
        with self._lock:
            closed = self._final_loss is not None
            rows = b"" if closed else b"".join(self._bpf.run_iterator(_ITERATOR))
        return decode_snapshot(rows, started_ns, time.time_ns(), boot_to_wall_ns())


def _took_of_somebody(event: OwnerEvent) -> bool:
    """Has a process taken a datagram without asking from whom?"""
    return (
        event.kind is EventKind.RECEIVE
        and not event.remote_address
        and event.protocol in (UDP, UDPLITE)
    )
