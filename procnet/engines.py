"""What counts: opens the engine that the ladder has chosen, or the one that can be had."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from procnet import ladder
from procnet.bpf.counts import KernelCounts
from procnet.bpf.socket_counts import SocketCounts
from procnet.capture.handle import BUFFER_BYTES
from procnet.capture.tap import Tap
from procnet.errors import AccessError, UnsupportedError
from procnet.model import Features
from procnet.witnesses import Witnesses

_HOLD_BACK_MS = 50
_HOLD_BACK_LOOKING_MS = 2  # a look must come before a short-lived socket is gone
_BUFFER_LOOKING_BYTES = 32 << 20
"""Each time that packets are handed over, a block of the ring, 256 KiB, is used up. Every 2 ms,
this is enough for a pause of a quarter of a second, the usual size only for one of 32 ms."""

_log = logging.getLogger("procnet")


def open_engine(
    features: Features, names: Sequence[str] | None, netns: int, witnesses: Witnesses, forced: bool
) -> tuple[Tap | SocketCounts, Features]:
    """The engine, and the ladder with what became of it; ``forced``: that one or none.

    Raises ``CaptureError`` for an interface that cannot be read, ``AccessError`` and
    ``UnsupportedError``.
    """
    if features.counting == "socket":
        assert witnesses.counts is not None
        return witnesses.counts, features
    if features.counting == "kernel":
        try:
            return _open_kernel_tap(features, names, netns, witnesses)
        except (UnsupportedError, AccessError) as error:
            if forced:
                raise
            features = ladder.count_in_python(features, str(error))
            _log.warning("counting in Python, not in the kernel: %s", error)
    hold_back_ms, buffer_bytes = _HOLD_BACK_MS, BUFFER_BYTES
    if witnesses.events is None:
        hold_back_ms, buffer_bytes = _HOLD_BACK_LOOKING_MS, _BUFFER_LOOKING_BYTES
    return Tap(names, netns, timeout_ms=hold_back_ms, buffer_bytes=buffer_bytes), features


def _open_kernel_tap(
    features: Features, names: Sequence[str] | None, netns: int, witnesses: Witnesses
) -> tuple[Tap, Features]:
    turns = witnesses.turns_descriptor
    if turns is None:
        raise UnsupportedError("kernel counting needs owners that tell when they change: core")
    engine = KernelCounts.open(turns)
    try:
        tap = Tap(names, netns, timeout_ms=_HOLD_BACK_MS, engine=engine)
    except BaseException:
        engine.close()
        raise
    return tap, ladder.replaced(features, engine.feature())
