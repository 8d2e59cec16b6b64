"""The ladder of sources: which rung a host has, why the better ones are missing, what helps."""

from __future__ import annotations

from procnet.bpf import kprobe
from procnet.capture import handle
from procnet.errors import UnsupportedError, UsageError
from procnet.features import no
from procnet.model import Feature, Features, Support
from procnet.sockets import procfs

KERNEL_CHOICES = ("auto", "core", "kprobe", "off")
COUNTING_CHOICES = ("auto", "kernel", "socket", "python")

_NOT_BUILT = "this version of procnet does not have it yet"


def check_choices(kernel: str, counting: str) -> None:
    """Raises ``UsageError`` for a rung that there is no such thing as."""
    for name, value, choices in (
        ("kernel", kernel, KERNEL_CHOICES),
        ("counting", counting, COUNTING_CHOICES),
    ):
        if value not in choices:
            raise UsageError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def rungs() -> tuple[Feature, ...]:
    """Every source, the best first; each is tried, none is kept."""
    return (
        no("kernel counting", _NOT_BUILT),
        no("socket counting", _NOT_BUILT),
        handle.probe(),
        no("core owners", _NOT_BUILT),
        kprobe.probe(),
        no("sock_diag owners", _NOT_BUILT),
        procfs.probe(),
    )


def choose(kernel: str, counting: str) -> Features:
    """The rung that will be used. Raises ``UnsupportedError`` if a forced one cannot be had."""
    check_choices(kernel, counting)
    tried = rungs()
    kernel_counting, socket_counting, python, core, kprobes, _, _ = tried
    if counting in ("kernel", "socket"):
        _refuse(
            f"--counting {counting}", kernel_counting if counting == "kernel" else socket_counting
        )
    if kernel == "core":
        _refuse("--kernel core", core)
    if kernel == "kprobe" and kprobes.support is Support.NO:
        _refuse("--kernel kprobe", kprobes)
    use_kprobes = kernel == "kprobe" or (kernel == "auto" and kprobes.support is Support.YES)
    # A user without privilege still sees the sockets of his own processes; the rest are counted.
    owners = "kprobe" if use_kprobes else "proc"
    return Features("" if python.support is Support.NO else "python", owners, tried)


def replaced(features: Features, rung: Feature, owners: str) -> Features:
    """The same ladder after a rung was stepped on: what became of it, and who names owners now."""
    rungs = tuple(rung if each.name == rung.name else each for each in features.rungs)
    return Features(features.counting, owners, rungs)


def _refuse(what: str, feature: Feature) -> None:
    remedy = f"; {feature.remedy}" if feature.remedy else ""
    raise UnsupportedError(f"{what} cannot be had here: {feature.reason}{remedy}")
