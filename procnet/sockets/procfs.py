"""The socket tables as files of /proc: no netlink, no BPF, any kernel, every namespace."""

from __future__ import annotations

import os
from collections.abc import Container

from procnet import features
from procnet.model import Feature, Socket
from procnet.sockets.pids import list_pids, process_directory, read_at
from procnet.sockets.tables import TABLES, parse_table, settled_ping_sockets

PRIVILEGES = "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
"""What it takes to read the files of other users' processes."""


def read_tables(
    directory: int, netns: int, besides: Container[str] = ()
) -> tuple[list[Socket], int]:
    """The sockets that /proc/PID/net shows, and how many lines could not be understood.

    ``directory`` is a descriptor of /proc/PID, ``netns`` the namespace of that process; the tables
    in ``besides`` are left out. Raises OSError.
    """
    sockets: list[Socket] = []
    ping: dict[str, list[Socket]] = {"icmp": [], "icmp6": []}
    malformed = 0
    for table in TABLES:
        if table in besides:
            continue
        try:
            text = read_at(directory, f"net/{table}")
        except FileNotFoundError:
            continue  # a kernel without IPv6, UDP-Lite or packet sockets has no such table
        found, skipped = parse_table(table, text, netns)
        malformed += skipped
        if table in ping:
            ping[table] = found
        else:
            sockets += found
    return sockets + settled_ping_sockets(ping["icmp"], ping["icmp6"]), malformed


def probe(root: str | os.PathLike[str] = "/proc") -> Feature:
    """Whether the open files of other processes can be read, found out by reading them.

    The answer is no if other users' processes are there and none of them shows its files; the
    reason counts those that do not. Raises nothing: a ``root`` that cannot be listed is unknown.
    """
    name, base = "proc owners", os.fspath(root)
    remedy = f"run as root (sudo), or give {PRIVILEGES}"
    try:
        pids = list_pids(base)
    except OSError as error:
        return features.unknown(name, f"cannot list {base}: {error.strerror}", "mount proc there")
    if not pids:
        return features.unknown(name, f"{base} shows no process", "mount proc there")
    if "1" not in pids:
        # Every pid namespace has a process 1 as long as it lives: man pid_namespaces(7).
        return features.no(
            name, f"{base} hides other users' processes (hidepid)", f"{remedy}; or mount with gid="
        )
    answers = {pid: _shows_files(base, pid) for pid in pids}
    denied = [pid for pid, answer in answers.items() if answer is False]
    readable = [pid for pid, answer in answers.items() if answer]
    if not denied:
        return features.yes(name, f"the files of all {len(readable)} processes can be read")
    counts = f"{len(denied)} of {len(answers)} processes do not show their files (pid {denied[0]})"
    others_denied = any(_is_foreign(base, pid) for pid in denied)
    if others_denied and not any(_is_foreign(base, pid) for pid in readable):
        return features.no(name, counts, remedy)
    return features.yes(name, counts)


def _shows_files(root: str, pid: str) -> bool | None:
    """None for a process that ended. Listing may be allowed where reading the links is not."""
    try:
        with process_directory(root, pid) as directory:
            table = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            try:
                for descriptor in os.listdir(table)[:1]:
                    os.readlink(descriptor, dir_fd=table)
            finally:
                os.close(table)
    except PermissionError:
        return False
    except OSError:
        return None
    return True


def _is_foreign(root: str, pid: str) -> bool:
    try:
        return os.stat(f"{root}/{pid}").st_uid != os.geteuid()
    except OSError:
        return False
