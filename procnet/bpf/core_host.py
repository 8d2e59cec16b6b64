"""What the CO-RE rung needs of a host, looked at one by one, cheapest first."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from procnet.bpf import cgroup
from procnet.bpf.host import (
    CAP_BPF,
    CAP_NET_ADMIN,
    CAP_PERFMON,
    CAP_SYS_ADMIN,
    Host,
    Obstacle,
    capabilities,
    check_namespaces,
)
from procnet.errors import AccessError, LayoutError, LoadError, UnsupportedError

OBJECT = Path(__file__).with_name("owners.bpf.o")
"""What setup.py compiles from bpf/owners.bpf.c."""

_INITIAL_CGROUP_NAMESPACE = 0xEFFFFFFB  # include/linux/proc_ns.h


def find_obstacle(host: Host, image: Path = OBJECT) -> Obstacle | None:
    """The first thing that is missing, by looking; None if it is worth a try."""
    if not image.is_file():
        return Obstacle(
            f"{image.name} is not there: procnet was built without clang",
            "apt install clang libbpf-dev, then install procnet again (make run)",
        )
    from procnet.bpf import libbpf  # not for whoever only imports procnet: see core.py

    try:
        libbpf.check_library()
    except UnsupportedError as error:
        reason, _, remedy = str(error).rpartition("; ")
        return Obstacle(reason, remedy)
    if not _btf(host).is_file():
        return Obstacle(
            f"the kernel has no BTF: {_btf(host)} does not exist",
            "needs a kernel with CONFIG_DEBUG_INFO_BTF",
        )
    return _check_capabilities(host) or check_namespaces(host) or _check_cgroup(host)


def known_names(host: Host) -> bytes:
    """The kernel's BTF, in which a name can be looked for: b"\\0name\\0"."""
    return _read(_btf(host))


def refusal(error: LoadError, host: Host) -> Obstacle:
    """What to make of a kernel that has said no."""
    if is_permission(error) and not capabilities(host) & CAP_SYS_ADMIN:
        remedy = "give it CAP_SYS_ADMIN too, or see whether kernel.lockdown allows BPF"
        return Obstacle(str(error), remedy, AccessError)
    return Obstacle(str(error), "the kernel says why; a newer one may take it", LoadError)


@contextlib.contextmanager
def demanded(what: str, host: Host, image: Path) -> Iterator[None]:
    """For those who load ``what``: what is missing is raised, and what the kernel then refuses.

    Raises UnsupportedError, AccessError or LoadError: why, and what to do.
    """
    obstacle = find_obstacle(host, image)
    if obstacle is not None:
        raise obstacle.as_error(what)
    try:
        yield
    except LayoutError:
        raise
    except LoadError as error:
        raise refusal(error, host).as_error(what) from error


def failed_program(error: LoadError) -> str:
    """The program that a load failed for, by libbpf's own words; empty if it does not say."""
    names = re.findall(r"^prog '(\w+)': ", str(error), re.M)
    return names[-1] if names else ""


def is_permission(error: LoadError) -> bool:
    """Did the kernel say EPERM?"""
    return os.strerror(errno.EPERM) in str(error)


def _btf(host: Host) -> Path:
    return host.sysfs_root / "kernel/btf/vmlinux"


def _check_capabilities(host: Host) -> Obstacle | None:
    held = capabilities(host)
    needed = CAP_BPF | CAP_PERFMON | CAP_NET_ADMIN
    if held & CAP_SYS_ADMIN or held & needed == needed:
        return None
    return Obstacle(
        "loading BPF programs for cgroups needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (or"
        " CAP_SYS_ADMIN)",
        "run it as root, or give it the capabilities",
        AccessError,
    )


def _check_cgroup(host: Host) -> Obstacle | None:
    try:
        inode = os.stat(host.proc_root / "self/ns/cgroup").st_ino
    except OSError:
        inode = _INITIAL_CGROUP_NAMESPACE  # a kernel without that kind of namespace
    if inode != _INITIAL_CGROUP_NAMESPACE:
        return Obstacle(
            "this process is not in the initial cgroup namespace: the root that it sees is not that"
            " of all processes",
            "run it in the host's cgroup namespace (docker run --cgroupns=host)",
        )
    try:
        os.close(cgroup.open_root(host.proc_root))
    except AccessError as error:
        return Obstacle(str(error), "mount -t cgroup2 none /sys/fs/cgroup/unified, or the like")
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
