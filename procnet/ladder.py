"""The ladder of sources: which rung a host has, why the better ones are missing, what helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from procnet.bpf import core, counts, kprobe
from procnet.capture import handle
from procnet.errors import UnsupportedError, UsageError
from procnet.features import no, unknown, yes
from procnet.model import Feature, Features, Support
from procnet.sockets import conntrack, diag, fork_events, procfs

KERNEL_CHOICES = ("auto", "core", "kprobe", "off")
COUNTING_CHOICES = ("auto", "kernel", "socket", "python")
CONTAINERS_CHOICES = ("auto", "on", "off")

# Who says who, the best first. Looking always remains: a user without privilege still sees the
# sockets of his own processes, and the rest are counted.
# For each rung: a probe that does it, for the doctor, and what can be told by looking, for those
# who are about to do it anyway.
_OWNERS: tuple[tuple[str, Callable[[], Feature], Callable[[], Feature]], ...] = (
    ("core", core.probe, core.promise),
    ("kprobe", kprobe.probe, kprobe.promise),
    ("sock_diag", diag.probe_diag, diag.probe_diag),
    ("proc", procfs.probe, procfs.probe),
)
_LOOKING = ("sock_diag", "proc")
# The counters of the kernel have no time that an owner could be looked up by; the hooks of these
# owners keep apart what was counted before and after a change. At sockets they count themselves.
_OWNERS_THAT_SPLIT_COUNTS = "core"
_CAPTURE = "python counting"

COMPARING = yes("comparing sockets", "what is captured can be held against what sockets count")
"""What there is to say of it where both can be counted."""


def check_choices(kernel: str, counting: str, containers: str = "auto") -> None:
    """Raises ``UsageError`` for a rung that there is no such thing as."""
    for name, value, choices in (
        ("kernel", kernel, KERNEL_CHOICES),
        ("counting", counting, COUNTING_CHOICES),
        ("containers", containers, CONTAINERS_CHOICES),
    ):
        if value not in choices:
            raise UsageError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def survey(kernel: str, counting: str) -> Features:
    """Every source, tried and not kept. Raises ``UnsupportedError`` like ``choose()``."""
    features = _features(kernel, counting, every=True)
    rungs = {rung.name: rung for rung in features.rungs}
    comparing = _comparing(rungs[_CAPTURE], rungs[core.COUNTING_AT_SOCKETS.name])
    beside = (comparing, conntrack.probe(), fork_events.probe())
    return Features(features.counting, features.owners, (*features.rungs, *beside))


def choose(
    kernel: str, counting: str, *, on_interfaces: bool = False, compare_sockets: bool = False
) -> Features:
    """The best rung that nothing speaks against; those below it are not looked at.

    ``on_interfaces``: the caller has named some. ``compare_sockets``: sockets are counted beside a
    capture. Raises ``UnsupportedError`` if a forced one cannot be had.
    """
    features = _features(kernel, counting, every=False, on_interfaces=on_interfaces)
    if not compare_sockets:
        return features
    by_socket = no(core.COUNTING_AT_SOCKETS.name, _needs_core(features.owners))
    if features.owners == _OWNERS_THAT_SPLIT_COUNTS:
        by_socket = core.promise_counting()
    rungs = {rung.name: rung for rung in features.rungs}
    comparing = _comparing(rungs[_CAPTURE], by_socket)
    if comparing.support is Support.NO:
        _refuse("--compare-sockets", comparing)
    return Features(features.counting, features.owners, (*features.rungs, comparing))


def step_down(features: Features, why: str) -> Features:
    """The next rung below the one that was to be used and could not be had."""
    result = replaced(features, no(_feature_name(features.owners), why))
    names = [name for name, _, _ in _OWNERS]
    for name, _, promise in _OWNERS[names.index(features.owners) + 1 :]:
        feature = promise()
        result = replaced(result, feature)
        if feature.support is not Support.NO:
            return Features(result.counting, name, result.rungs)
    return Features(result.counting, "proc", result.rungs)


def count_in_python(features: Features, why: str) -> Features:
    """The same ladder where counting in the kernel was to be had and could not."""
    result = replaced(features, no("kernel counting", why))
    return Features("python", result.owners, result.rungs)


def replaced(features: Features, rung: Feature) -> Features:
    """The same ladder with what became of a rung once it was stepped on."""
    rungs = tuple(rung if each.name == rung.name else each for each in features.rungs)
    return Features(features.counting, features.owners, rungs)


def _features(kernel: str, counting: str, *, every: bool, on_interfaces: bool = False) -> Features:
    check_choices(kernel, counting)
    python = handle.probe() if every else handle.promise()
    names = {"auto": tuple(name for name, _, _ in _OWNERS), "off": _LOOKING}.get(kernel, (kernel,))
    owners = ""
    tried = []
    for name, probe, promise in _OWNERS:
        wanted = name in names and not owners
        if every:
            feature = probe()
        else:
            feature = promise() if wanted else unknown(_feature_name(name), "was not tried")
        tried.append(feature)
        if wanted and feature.support is not Support.NO:
            owners = name
        elif name == kernel:
            _refuse(f"--kernel {kernel}", feature)
    by_kernel = _kernel_counting(counting, owners or "proc", every=every)
    by_socket = _socket_counting(
        counting, owners or "proc", python, every=every, on_interfaces=on_interfaces
    )
    for name, feature in (("kernel", by_kernel), ("socket", by_socket)):
        if counting == name and feature.support is Support.NO:
            _refuse(f"--counting {name}", feature)
    counted_by = counting
    if counting == "auto":
        counted_by = "python" if by_kernel.support is Support.NO else "kernel"
    if counted_by != "socket" and python.support is Support.NO:
        # Without a capture sockets are the only ones to ask.
        asked = counting == "auto" and not on_interfaces and by_socket.support is not Support.NO
        counted_by = "socket" if asked else ""
    return Features(counted_by, owners or "proc", (by_kernel, by_socket, python, *tried))


def _kernel_counting(counting: str, owners: str, *, every: bool) -> Feature:
    if owners != _OWNERS_THAT_SPLIT_COUNTS:
        return no("kernel counting", _needs_core(owners))
    if every:
        return counts.probe()
    if counting in ("python", "socket"):
        return unknown("kernel counting", "was not tried")
    return counts.promise()


def _socket_counting(
    counting: str, owners: str, capture: Feature, *, every: bool, on_interfaces: bool
) -> Feature:
    if owners != _OWNERS_THAT_SPLIT_COUNTS:
        return no("socket counting", _needs_core(owners))
    if on_interfaces:
        return no(
            "socket counting", "a socket has no interface", "name none, or count in another way"
        )
    if every:
        return core.probe_counting()
    if counting == "socket" or (counting == "auto" and capture.support is Support.NO):
        return core.promise_counting()
    return unknown("socket counting", "was not tried: packets can be captured")


def _comparing(capture: Feature, by_socket: Feature) -> Feature:
    for needed in (capture, by_socket):
        if needed.support is not Support.YES:
            reason = f"{needed.name}: {needed.reason}"
            return Feature(COMPARING.name, needed.support, reason, needed.remedy)
    return COMPARING


def _needs_core(owners: str) -> str:
    return f"needs core owners; here they come from {owners}"


def _feature_name(owners: str) -> str:
    return f"{owners} owners"


def _refuse(what: str, feature: Feature) -> NoReturn:
    remedy = f"; {feature.remedy}" if feature.remedy else ""
    raise UnsupportedError(f"{what} cannot be had here: {feature.reason}{remedy}")
