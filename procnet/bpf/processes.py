"""Records of processes become rows of the process table."""

from __future__ import annotations

from procnet.bpf import layout
from procnet.kernel_text import decode_arguments, decode_text
from procnet.model import CLOCK_TICK_NS, Process


def comm_text(comm: bytes) -> str:
    """The name of a process, which may be any bytes: ``b"caf\\xff\\0…"`` gives ``caf\\xff``."""
    return decode_text(comm.partition(b"\0")[0])


def decode_process(record: bytes) -> Process:
    """One record. Text that is not known is empty; ``cmdline`` is cut after 1024 bytes.

    Raises LayoutError for a record of another size or layout version than ours.
    """
    raw = layout.RawProcess._make(layout.unpack(layout.PROCESS, record))
    return Process(
        pid=raw.tgid,
        start_time_ns=raw.start_ns - raw.start_ns % CLOCK_TICK_NS,
        name=comm_text(raw.comm),
        exe=_path(raw.exe[: raw.exe_bytes]),
        cmdline=decode_arguments(raw.args[: raw.args_bytes]),
        uid=raw.uid,
        parent_pid=raw.parent_tgid,
        cgroup=_path(raw.cgroup[: raw.cgroup_bytes]),
    )


def _path(names: bytes) -> str:
    """``b"curl\\0bin\\0"``, the last name first, is ``/bin/curl``; no names, no path."""
    if not names:
        return ""
    return "/" + decode_text(b"/".join(reversed(names[:-1].split(b"\0"))))
