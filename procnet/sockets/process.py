"""Processes as a person knows them, from /proc: name, program, user, container."""

from __future__ import annotations

import math
import os
import pwd
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cachetools import LRUCache

from procnet.kernel_text import decode_arguments, decode_text
from procnet.model import Process, ProcessId
from procnet.sockets.container import container_of
from procnet.sockets.pids import process_directory, raise_if_ours, read_at, stat_at

# A row is kept when its process is gone. Arguments of two letters take twenty times their bytes as
# Python's strings: kept so, 16 384 processes of anybody's would fill 1.5 GB (see _packed()).
_CMDLINE_LIMIT_BYTES = 4096
_CGROUP_LIMIT_BYTES = 64 * 1024
_STATUS_LIMIT_BYTES = 16 * 1024
_USERS_KEPT = 1024

# The name in /proc/PID/status is escaped (proc_task_name, fs/proc/array.c): it cannot forge a line.
_REAL_UID = re.compile(rb"^Uid:\t([0-9]{1,10})\t", re.MULTILINE)
_DELETED = " (deleted)"


def _user_name(uid: int) -> str:
    try:
        # Python gives bytes that are not UTF-8 as surrogates, which no strict reader of JSON takes.
        return decode_text(os.fsencode(pwd.getpwuid(uid).pw_name))
    except KeyError:
        return ""


@dataclass(frozen=True, slots=True)
class _Row:
    process: Process
    """As ``_packed`` makes it, and without the name of its user."""
    read_at_s: float
    """When /proc was asked last; minus infinity for never."""
    told: bool
    """What we know comes from kernel events, nothing from /proc."""


class ProcessTable:
    """(pid, start time) -> Process, remembered for the ``max_processes`` used last.

    A row older than ``refresh_s`` (seconds by ``timer``) is read again, because exec(2) changes
    name and program; a process that has ended keeps its last good row. ``user_name`` turns a uid
    into a name, empty for none; its answers are kept. Any thread may use it.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/proc",
        max_processes: int = 16384,
        *,
        refresh_s: float = 2.0,
        timer: Callable[[], float] = time.monotonic,
        user_name: Callable[[int], str] = _user_name,
    ) -> None:
        self._root = os.fspath(root)
        self._refresh_s = refresh_s
        self._timer = timer
        self._user_name = user_name
        self._lock = threading.Lock()
        self._rows: LRUCache[ProcessId, _Row] = LRUCache(max_processes)
        self._users: LRUCache[int, str] = LRUCache(_USERS_KEPT)

    def get(self, process: ProcessId) -> Process | None:
        """All that can be learnt about this process, None if nothing can.

        Never the row of another process: a pid that was given to another one since answers as one
        that has ended. Fields that this user may not read are empty. ``exe`` is the path that was
        executed, without the `` (deleted)`` that the kernel appends once the file is gone;
        ``cmdline`` is cut after 4 KiB; ``uid`` is the real one. ``cgroup`` is the path in the
        unified hierarchy or else in systemd's own (v1). Text that is not UTF-8 shows as ``\\xNN``.

        Whoever asks first for a process of a user waits for the name service. Raises OSError if
        this process is out of descriptors or memory.
        """
        with self._lock:
            known = self._known(process)
        return None if known is None else self._completed(known)

    def learn(self, process: ProcessId) -> bool:
        """Reads now what get() may be asked for later; whether anything is known then.

        Nobody is asked for the name of the user. Raises OSError as get() does.
        """
        with self._lock:
            return self._known(process) is not None

    def _known(self, process: ProcessId) -> Process | None:
        row = self._rows.get(process)
        now_s = self._timer()
        if row is not None and now_s - row.read_at_s < self._refresh_s:
            return row.process
        fresh = self._read(process)
        if fresh is None:
            if row is None:
                return None
            # Asking again before the next refresh would fail again.
            self._rows[process] = replace(row, read_at_s=now_s)
            return row.process
        fresh = _packed(fresh)
        if row is not None:
            fresh = _fuller(fresh, row.process)
        self._rows[process] = _Row(fresh, now_s, told=False)
        return fresh

    def remember(self, process: Process) -> None:
        """Keeps what the kernel told about a process that /proc may never show.

        It only adds: no field that is known is replaced by an empty one. What was told with a
        program replaces what was told before, and what /proc showed of an earlier one.
        """
        process = _packed(process)
        with self._lock:
            row = self._rows.get(process.id)
            if row is None:
                row = _Row(process, -math.inf, told=True)
            elif row.told or process.exe:
                row = replace(row, process=_filled(process, row.process))
            else:
                row = replace(row, process=_filled(row.process, process))
            self._rows[process.id] = row

    def __contains__(self, process: ProcessId) -> bool:
        """Whether anything is known of it."""
        return process in self._rows

    def current(self, pid: int) -> ProcessId | None:
        """The process that has this number now; None if there is none.

        Raises OSError if this process is out of descriptors or memory.
        """
        try:
            with process_directory(self._root, pid) as directory:
                return ProcessId(pid, stat_at(directory).start_time_ns)
        except (OSError, ValueError) as error:
            raise_if_ours(error)
            return None

    def _read(self, process: ProcessId) -> Process | None:
        try:
            with process_directory(self._root, process.pid) as directory:
                stat = stat_at(directory)
                if stat.start_time_ns != process.start_time_ns:
                    return None
                # All through this one descriptor, which no later process of that number answers
                # by (see pids.py): if ours ends now, fields stay empty and none is a stranger's.
                exe = _link(directory, "exe")
                cmdline = _content(directory, "cmdline", _CMDLINE_LIMIT_BYTES)
                status = _content(directory, "status", _STATUS_LIMIT_BYTES)
                cgroup = _cgroup_path(_content(directory, "cgroup", _CGROUP_LIMIT_BYTES))
        except (OSError, ValueError) as error:
            raise_if_ours(error)
            return None
        real_uid = _REAL_UID.search(status)
        return Process(
            pid=process.pid,
            start_time_ns=process.start_time_ns,
            name=decode_text(stat.name),
            exe=exe,
            cmdline=decode_arguments(cmdline),
            uid=int(real_uid[1]) if real_uid else None,
            parent_pid=stat.parent_pid,
            cgroup=cgroup,
        )

    def _completed(self, process: Process) -> Process:
        """As a caller gets it."""
        return replace(
            process,
            cmdline=tuple(process.cmdline[0].split("\0")) if process.cmdline else (),
            user="" if process.uid is None else self._user(process.uid),
        )

    def _user(self, uid: int) -> str:
        with self._lock:
            user = self._users.get(uid)
        if user is None:
            # Without the lock: a directory service may take seconds, and events do not wait.
            user = self._user_name(uid)
            with self._lock:
                self._users[uid] = user
        return user


def _packed(process: Process) -> Process:
    """With its container, and its arguments as one string, which is as long as they are."""
    return replace(
        process,
        cmdline=("\0".join(process.cmdline),) if process.cmdline else (),
        container=process.container or container_of(process.cgroup),
    )


def _filled(row: Process, other: Process) -> Process:
    """``row``, with what it lacks taken from ``other``."""
    return Process(
        pid=row.pid,
        start_time_ns=row.start_time_ns,
        name=row.name or other.name,
        exe=row.exe or other.exe,
        cmdline=row.cmdline or other.cmdline,
        uid=other.uid if row.uid is None else row.uid,
        parent_pid=row.parent_pid or other.parent_pid,
        cgroup=row.cgroup or other.cgroup,
        container=row.container or (other.container if not row.cgroup else ""),
    )


def _fuller(fresh: Process, known: Process) -> Process:
    """A process that has no program any more is ending: its memory is gone, its row need not be."""
    if known.exe and not fresh.exe:
        return known
    return fresh if fresh.uid is not None else _filled(fresh, known)


def _link(directory: int, name: str) -> str:
    try:
        target = os.readlink(os.fsencode(name), dir_fd=directory)
    except OSError as error:
        raise_if_ours(error)
        return ""
    return decode_text(target).removesuffix(_DELETED)


def _content(directory: int, name: str, limit_bytes: int) -> bytes:
    try:
        return read_at(directory, name, limit_bytes)
    except OSError as error:
        raise_if_ours(error)
        return b""


def _cgroup_path(text: bytes) -> str:
    """The most telling path of /proc/PID/cgroup, man cgroups(7): ``ID:CONTROLLERS:PATH`` lines.

    On a hybrid host the unified hierarchy may be mounted and unused: a root path says nothing as
    long as another hierarchy says more.
    """
    paths: dict[str, str] = {}
    for line in decode_text(text).split("\n"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/"):
            key = "unified" if hierarchy == "0" and not controllers else controllers
            paths.setdefault(key, path.removesuffix(_DELETED))
    found = [paths[key] for key in ("unified", "name=systemd", "memory") if key in paths]
    return next((path for path in found if path != "/"), found[0] if found else "")
