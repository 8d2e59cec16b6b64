"""Who uses which socket, in the caller's hands as it happens."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

from procnet import ladder
from procnet.errors import UnsupportedError, UsageError
from procnet.model import Features, OwnerEvent, Process, Support
from procnet.report.socket_use import SocketUse, socket_use
from procnet.sockets.process import ProcessTable
from procnet.witnesses import HOOKS, Hooks, open_hooks

_WAIT_MS = 250
"""After a stop() in another thread, an iteration waits for so long at most."""


class Watch:
    """Tells each new use of a socket: who connects, accepts, sends, receives, closes.

    A use is told once, until another process uses the same socket or the same process uses it for
    another remote end. ``kernel`` (auto, core, kprobe) forces a rung; looking cannot watch.
    ``netns``: the inode of one network namespace, None for all.

    Making one does nothing. ``start()``, or entering it as a context, raises ``UnsupportedError``
    or ``AccessError`` where nothing can tell, and why. Iterate, which waits, or ``read()`` when
    ``fileno()`` is readable, which does not. One thread may read; any may call ``stop()``.
    """

    def __init__(self, *, kernel: str = "auto", netns: int | None = None) -> None:
        ladder.check_choices(kernel, "auto")
        if kernel == "off":
            raise UsageError("kernel='off' leaves looking, which cannot watch")
        self._kernel = kernel
        self._netns = netns
        self._events: Hooks | None = None
        self._features: Features | None = None
        self._processes = ProcessTable()
        self._pid = 0

    def start(self) -> None:
        """Attaches the hooks: what is used from now on is told."""
        if self._features is not None:
            raise UsageError("a Watch is started once; make another one")
        self._features = ladder.choose(self._kernel, "auto")
        self._events = self._attach(self._features)
        self._pid = os.getpid()

    def _attach(self, features: Features) -> Hooks:
        self._features, events = open_hooks(features, kernel=self._kernel, netns=self._netns)
        if events is not None:
            return events
        why = "; ".join(
            f"{rung.name}: {rung.reason}"
            for rung in self._features.rungs
            if rung.support is Support.NO and rung.name.split()[0] in HOOKS
        )
        raise UnsupportedError(f"nothing here can tell who uses a socket as it happens: {why}")

    @property
    def features(self) -> Features:
        """The rung in use, and why the better ones are not; before the start the one to be tried,
        by looking alone. Then raises ``UnsupportedError`` where ``start()`` would."""
        return self._features or ladder.choose(self._kernel, "auto")

    @property
    def events_lost(self) -> int:
        """Uses that could not be told because the reader was too slow; only grows."""
        return self._started().events_lost()

    def fileno(self) -> int:
        """For select and poll: readable when there is something to read. -1 once stopped."""
        return self._started().fileno()

    def read(self) -> list[SocketUse]:
        """What has happened since the last call, oldest first; empty once stopped."""
        source = self._started()
        events = source.read()
        for process in source.read_processes():
            self._processes.remember(process)
        return [socket_use(event, self._process(event)) for event in events]

    def _process(self, event: OwnerEvent) -> Process | None:
        if event.kernel:
            return None
        known = self._processes.get(event.process)
        return known or Process(*event.process, event.name, uid=event.uid)

    def __iter__(self) -> Iterator[SocketUse]:
        """Each use as it happens, until ``stop()``."""
        source = self._started()
        poller = select.poll()
        while (descriptor := source.fileno()) >= 0:
            yield from self.read()
            poller.register(descriptor, select.POLLIN)
            poller.poll(_WAIT_MS)

    def _started(self) -> Hooks:
        if self._events is None:
            raise UsageError("start the Watch first: with Watch() as watch: …")
        if self._pid != os.getpid():
            # Both would read the same ring, and each miss what the other took.
            raise UsageError("a Watch does not go through fork(): make another one")
        return self._events

    def stop(self) -> None:
        """Detaches the hooks, and ends an iteration in another thread. Idempotent."""
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
