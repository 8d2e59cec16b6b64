"""What the kprobe rung needs of a host, looked at one by one, cheapest first."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from procnet import features
from procnet.errors import AccessError, UnsupportedError
from procnet.model import Feature

# include/linux/proc_ns.h: the inodes of the initial namespaces, the same on every kernel.
_INITIAL_NAMESPACES = {"pid": 0xEFFFFFFC, "time": 0xEFFFFFFA}

_ROOT_UID = 0

# include/uapi/linux/capability.h
CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 1 << 12, 1 << 21, 1 << 38, 1 << 39


def _interpreters() -> tuple[str, ...]:
    # The distribution's bcc is for the distribution's interpreter; ours may be another version, or
    # one in a virtual environment that does not see it.
    return tuple(dict.fromkeys(path for path in (sys.executable, "/usr/bin/python3") if path))


@dataclass(frozen=True, slots=True)
class Host:
    """Where to look. The defaults are this machine; a test makes another."""

    modules_root: Path = Path("/lib/modules")
    sysfs_root: Path = Path("/sys")
    proc_root: Path = Path("/proc")
    release: str = field(default_factory=lambda: os.uname().release)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    interpreters: tuple[str, ...] = field(default_factory=_interpreters)


class Obstacle(NamedTuple):
    """Why not, and what would help."""

    reason: str
    remedy: str
    error: type[UnsupportedError] | type[AccessError] = UnsupportedError

    def as_error(self, what: str) -> UnsupportedError | AccessError:
        """For whoever asked for ``what``."""
        return self.error(f"{what}: {self.reason}; {self.remedy}")

    def as_feature(self, name: str) -> Feature:
        """A no."""
        return features.no(name, self.reason, self.remedy)


def promised(name: str, obstacle: Obstacle | None) -> Feature:
    """What looking alone tells: no, or worth a try."""
    if obstacle is None:
        return features.unknown(name, "nothing speaks against it")
    return obstacle.as_feature(name)


def find_obstacle(host: Host) -> Obstacle | None:
    """The first thing that this host lacks, by looking; a fraction of a millisecond."""
    checks: Iterable[Callable[[Host], Obstacle | None]] = (
        _check_kprobes, check_namespaces, _check_capabilities, _check_headers,
    )  # fmt: skip
    return next((obstacle for check in checks if (obstacle := check(host))), None)


def _check_kprobes(host: Host) -> Obstacle | None:
    # The PMU (4.17, e12f03d7031a) and not tracefs: its probes end with their descriptors.
    pmu = host.sysfs_root / "bus/event_source/devices/kprobe"
    if not pmu.is_dir():
        return Obstacle(
            f"the kernel has no kprobes: {pmu} does not exist", "needs a kernel with CONFIG_KPROBES"
        )
    # Present and unable to fire: the switch for all kprobes (Documentation/trace/kprobes.rst).
    switch = host.sysfs_root / "kernel/debug/kprobes/enabled"
    if _text(switch).strip() == "0":
        return Obstacle(f"kprobes are switched off in {switch}", f"write 1 to {switch}")
    return None


def check_namespaces(host: Host) -> Obstacle | None:
    for kind, initial in _INITIAL_NAMESPACES.items():
        try:
            inode = os.stat(host.proc_root / "self/ns" / kind).st_ino
        except OSError:
            continue  # a kernel without that kind of namespace
        if inode != initial:
            return Obstacle(
                f"this process is not in the initial {kind} namespace, whose pids and times the"
                " kernel would tell",
                f"run it in the host's {kind} namespace (docker run --pid=host)",
            )
    return None


def perf_obstacle(host: Host) -> Obstacle | None:
    """What may be in the way when the kernel has refused a probe. (Not asked in advance: some
    kernels of that distribution do not refuse it.)"""
    level = _text(host.proc_root / "sys/kernel/perf_event_paranoid").strip()
    if not level.isdigit() or int(level) < 3 or capabilities(host) & CAP_SYS_ADMIN:
        return None
    return Obstacle(
        f"kernel.perf_event_paranoid is {level}: Debian and Ubuntu have patched their kernels to"
        " refuse probes then to whoever lacks CAP_SYS_ADMIN",
        "run sysctl kernel.perf_event_paranoid=2, or give it CAP_SYS_ADMIN",
        AccessError,
    )


def capabilities(host: Host) -> int:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", _text(host.proc_root / "self/status"), re.M)
    return int(match[1], 16) if match else 0


def _check_capabilities(host: Host) -> Obstacle | None:
    held = capabilities(host)
    if held & CAP_SYS_ADMIN or (held & CAP_BPF and held & CAP_PERFMON):
        return None
    return Obstacle(
        "loading BPF programs needs CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN)",
        "run it as root, or give it the capabilities",
        AccessError,
    )


def _check_headers(host: Host) -> Obstacle | None:
    # bcc compiles against whatever it finds and then silently reads other offsets, so the release
    # is compared here: the one use of it, and not to decide what the kernel can do.
    remedy = (
        f"install the headers of the running kernel: linux-headers-{host.release} (Debian/Ubuntu),"
        f" kernel-devel-{host.release} (Fedora)"
    )
    named = host.environment.get("BCC_KERNEL_SOURCE")
    tree = Path(named) if named else host.modules_root / host.release / "build"
    if tree.is_dir():
        release = _release_of(tree)
        if release == host.release:
            return None
        by = ", which BCC_KERNEL_SOURCE names," if named else ""
        return Obstacle(
            f"the kernel headers in {tree}{by} are of release {release or 'unknown'}, the kernel"
            f" that runs is {host.release}: every field would be read at a wrong offset",
            "unset BCC_KERNEL_SOURCE" if named else remedy,
        )
    if named:
        return Obstacle(f"BCC_KERNEL_SOURCE={named} is no directory", "unset BCC_KERNEL_SOURCE")
    if not _has_kheaders(host):
        return Obstacle(f"no headers of the running kernel {host.release}: no {tree}", remedy)
    return _check_unpacked(host)


def _release_of(tree: Path) -> str:
    # Debian's include/config/kernel.release has the upstream version, its utsrelease.h has
    # what uname says; hence this order.
    match = re.search(r'UTS_RELEASE "([^"]*)"', _text(tree / "include/generated/utsrelease.h"))
    return match[1] if match else _text(tree / "include/config/kernel.release").strip()


def _has_kheaders(host: Host) -> bool:
    # CONFIG_IKHEADERS (5.2, 43d8ce9d65a5): the kernel's own, built in or in a module of it.
    if (host.sysfs_root / "kernel/kheaders.tar.xz").exists():
        return True
    return any((host.modules_root / host.release / "kernel/kernel").glob("kheaders.ko*"))


def _check_unpacked(host: Host) -> Obstacle | None:
    import tempfile  # 2 ms, for this alone

    # bcc unpacks them there, and trusts a directory that is there already.
    directory = Path(tempfile.gettempdir()) / f"kheaders-{host.release}"
    try:
        owner = directory.stat().st_uid
    except OSError:
        return None
    if owner in (_ROOT_UID, os.geteuid()):
        return None
    return Obstacle(f"{directory} belongs to user {owner}", f"remove {directory}", AccessError)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
