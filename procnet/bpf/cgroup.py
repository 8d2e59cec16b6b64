"""The root of cgroup v2, to attach programs to: where it is mounted, or a mount of our own."""

from __future__ import annotations

import os
from pathlib import Path

from procnet.errors import AccessError

# The same on every architecture (since 5.2); glibc has had the functions since 2.36 only.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6


def open_root(proc_root: Path) -> int:
    """A descriptor of its directory. Raises AccessError where that takes a privilege.

    It need not be mounted where we are: ``ip netns exec`` hides it, with a /sys of the namespace's.
    """
    for path, device in _mounts(proc_root):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        # Something else may be mounted above it.
        status = os.fstat(descriptor)
        if f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}" == device:
            return descriptor
        os.close(descriptor)
    try:
        return _mount_detached()
    except OSError as error:
        raise AccessError(f"no cgroup v2 is mounted, nor can we do it: {error}") from error


def _mounts(proc_root: Path) -> list[tuple[str, str]]:
    # proc_pid_mountinfo(5): id, parent, device, root, mount point, … - type, source, options
    found = []
    text = (proc_root / "self/mountinfo").read_bytes().decode(errors="surrogateescape")
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if right.startswith("cgroup2 ") and len(fields) > 4 and fields[3] == "/":
            found.append((fields[4].replace("\\040", " ").replace("\\134", "\\"), fields[2]))
    return found


def _mount_detached() -> int:
    """A mount that has no place in the tree of files, and ends with its descriptor."""
    context = _call(_FSOPEN, b"cgroup2", _FSOPEN_CLOEXEC)
    try:
        _call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def _call(number: int, *arguments: int | bytes | None) -> int:
    import ctypes  # not for whoever only imports procnet: see core.py

    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result: int = function(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
