"""A thread's edge: where an error ends up that nobody else can take."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from typing import ParamSpec

from procnet.errors import ProcnetError

_PAUSE_S = 0.1
_SYNCHRONOUS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}

_log = logging.getLogger("procnet")

P = ParamSpec("P")


class Edge:
    """Makes the steps of threads: an error of one must neither end the run nor be silent.

    It is counted and logged, once if the same thread fails in the same way again. What a host may
    do to us at any time (no descriptors, no memory, a refusal) is a line in the log, and what
    nobody has thought of comes with its traceback. A failed step is followed by a pause, which
    ``stopping`` ends.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self.failures = 0
        """Steps that failed so far."""
        self._stopping = stopping
        self._lock = threading.Lock()
        self._said: dict[str, str] = {}

    def run(self, loop: Callable[[], None]) -> None:
        """What a thread of ours does. Signals are for the program's own threads.

        Python runs their handlers in the main thread alone, and one that is delivered to another
        thread does not wake it: the kernel does that where the main thread has been stopped
        (SIGSTOP) and not gone on yet.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _SYNCHRONOUS)
        loop()

    def step(self, step: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls it."""
        try:
            step(*args, **kwargs)
        except Exception as error:
            self._tell(error)
            self._stopping.wait(_PAUSE_S)

    def _tell(self, error: Exception) -> None:
        name, what = threading.current_thread().name, f"{type(error).__name__}: {error}"
        with self._lock:
            self.failures += 1
            is_new = self._said.get(name) != what
            self._said[name] = what
        if is_new:
            known = isinstance(error, ProcnetError | OSError | MemoryError)
            _log.error("a step of %s failed: %s", name, error or what, exc_info=not known)
