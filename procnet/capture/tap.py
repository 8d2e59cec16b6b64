"""Every interface at once: opens them, reads them, and goes on when one goes or comes back."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Sequence

from procnet.capture.counter import Counter
from procnet.capture.engine import CROWD_ENTRIES, Engine, KernelSide
from procnet.capture.handle import BUFFER_BYTES, TIMEOUT_MS, LiveHandle
from procnet.capture.interfaces import (
    Interface,
    InterfaceWatch,
    captured_interface,
    default_interfaces,
    list_interfaces,
    local_addresses,
)
from procnet.errors import CaptureError, LoadError, ProcnetError
from procnet.model import FlowCount

REOPEN_EVERY_S = 1.0
DRAIN_EVERY_S = 1.0
"""How often the kernel's table of flows is drained while there is room in it."""
_PAUSE_S = 0.05
_PAUSE_NEW_S = 0.002

_log = logging.getLogger("procnet")


class _Listening:
    __slots__ = ("counter", "handle", "index", "name")

    def __init__(self, interface: Interface, handle: LiveHandle, counter: Counter) -> None:
        self.name = interface.name
        self.index = interface.index
        self.handle = handle
        self.counter = counter


class Tap:
    """Reads packets from a set of interfaces and counts them. For one thread, but ``wake()``.

    ``names`` are the interfaces to read, or None for those that carry this host's own addresses,
    whichever they are at the time. ``timeout_ms`` is how long the kernel may hold packets back, and
    ``buffer_bytes`` how many it holds of each interface. ``engine`` counts in the kernel what it
    can, and is closed with the tap; without one all packets come here. Raises ``CaptureError`` for
    one that does not exist, ``AccessError`` where the privilege is missing, and ``LoadError`` if
    the engine cannot be attached.
    """

    unsplit_packets = 0
    """Every packet shows its remote end."""

    def __init__(
        self,
        names: Sequence[str] | None,
        netns: int,
        *,
        timeout_ms: int = TIMEOUT_MS,
        buffer_bytes: int = BUFFER_BYTES,
        engine: Engine | None = None,
    ) -> None:
        self.interruptions = 0
        """Times that the capture of an interface ended and had to be opened anew."""
        self.dropped_packets = 0
        """Packets that the kernel dropped because we read too slowly, as of the last drain."""
        self.interfaces: tuple[str, ...] = ()
        """The names of the interfaces that are being read now."""
        self._names = None if names is None else tuple(dict.fromkeys(names))
        self._netns = netns
        self._timeout_ms = timeout_ms
        self._buffer_bytes = buffer_bytes
        self._kernel = None if engine is None else KernelSide(engine, netns)
        self._listening: dict[str, _Listening] = {}
        self._left: list[FlowCount] = []
        self._drained_s = 0.0
        self._dropped_before_packets = 0
        self._lost: set[str] = set()
        self._is_outdated = False
        self._tried_s = time.monotonic()
        self._wake_lock = threading.RLock()
        self._wakeup = -1
        self._watch = InterfaceWatch()
        try:
            self._wakeup = _eventfd()
            wanted = self._wanted()
            missing = [name for name in self._names or () if name not in wanted]
            if missing:
                raise CaptureError(
                    f"cannot capture on {missing[0]!r}: there is no such interface;"
                    f" there are {', '.join(i.name for i in list_interfaces()) or 'none'}"
                )
            if not wanted:
                raise CaptureError("cannot capture: no interface is up; name one, or bring lo up")
            if self._kernel is not None:
                self._kernel.set_local_addresses(local_addresses())
            for interface in wanted.values():
                self._open(interface)
        except BaseException:
            self.close()
            raise

    def wait(self, timeout_s: float) -> None:
        """Waits for packets, counts those that are there, and follows changes of the interfaces."""
        poller = select.poll()
        for entry in self._listening.values():
            poller.register(entry.handle.fileno(), select.POLLIN)
        poller.register(self._watch.fileno(), select.POLLIN)
        poller.register(self._wakeup, select.POLLIN)
        poller.poll(timeout_s * 1000)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
        for entry in list(self._listening.values()):
            self._read(entry)
        retry = self._lost or self._is_outdated
        if self._watch.changed() or (retry and time.monotonic() - self._tried_s > REOPEN_EVERY_S):
            # A change is told once: if it cannot be followed now, it must be later.
            self._is_outdated = True
            self._follow()
            self._is_outdated = False

    @property
    def counts_in_kernel(self) -> bool:
        """Is there an engine? Then packets are no reason for ``wait()`` to end."""
        return self._kernel is not None

    @property
    def is_due(self) -> bool:
        """Is it time to drain?

        Each drain makes a run of each flow, so what the kernel counts is drained seldom, unless its
        table fills. What Python counts has no owner yet, and a flow that is new may be over soon:
        whoever owns it must be looked for now.
        """
        since_s = time.monotonic() - self._drained_s
        if self._kernel is not None:
            crowded = self._kernel.waiting_entries > CROWD_ENTRIES
            return since_s >= (_PAUSE_S if crowded else DRAIN_EVERY_S)
        new = any(entry.counter.has_new_flows for entry in self._listening.values())
        return since_s >= (_PAUSE_NEW_S if new else _PAUSE_S)

    @property
    def holds_back(self) -> bool:
        """Was there more than the last drain asked for, or could be read?"""
        return self._kernel is not None and self._kernel.holds_back

    def drain(self, most: int | None = None) -> list[FlowCount]:
        """What was counted since the last call.

        Of what the kernel counted about ``most``, if there is more: then another one is due soon.
        Raises LoadError: what there was comes with the next one, and that does not raise, or what
        fails for ever would let the rest pile up here.
        """
        self._drained_s = time.monotonic()
        has_left = bool(self._left)
        for entry in self._listening.values():
            self._left += entry.counter.drain()
        if self._kernel is not None:
            try:
                self._left += self._kernel.drain(most)
            except LoadError:
                if not has_left:
                    raise
        # Kept as a figure: another thread must never call into a handle that is being closed.
        self.dropped_packets = self._dropped_before_packets + sum(
            entry.handle.dropped_packets() for entry in self._listening.values()
        )
        counts, self._left = self._left, []
        return counts

    def wake(self) -> None:
        """Ends a ``wait()`` in another thread, now or the next one. Any thread may call it."""
        with self._wake_lock:
            if self._wakeup >= 0:
                os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """Gives everything back; what was counted can still be drained. Idempotent."""
        with self._wake_lock:
            if self._wakeup >= 0:
                os.close(self._wakeup)
                self._wakeup = -1
        try:
            self._stop(*self._listening.values())
        finally:
            if self._kernel is not None:
                self._kernel.close()
            self._watch.close()

    def _wanted(self) -> dict[str, Interface]:
        if self._names is None:
            return {interface.name: interface for interface in default_interfaces()}
        return {i.name: i for i in list_interfaces() if i.name in self._names}

    def _open(self, interface: Interface) -> None:
        handle = LiveHandle(
            interface.name, timeout_ms=self._timeout_ms, buffer_bytes=self._buffer_bytes
        )
        try:
            counter = Counter(
                interface.name,
                handle.link_type,
                self._netns,
                local_addresses(),
                loopback=interface.is_loopback,
                own_mac=interface.mac or None,
            )
            entry = _Listening(interface, handle, counter)
            if self._kernel is not None:
                entry.index = captured_interface(handle.fileno())
                self._kernel.attach(
                    handle.fileno(), entry.index, entry.name, loopback=interface.is_loopback
                )
        except BaseException:
            handle.close()
            raise
        self._listening[interface.name] = entry
        self.interfaces = tuple(self._listening)

    def _read(self, entry: _Listening) -> None:
        try:
            entry.handle.read(entry.counter.add)
        except CaptureError as error:
            _log.warning("%s", error)
            self._interrupt(entry)

    def _interrupt(self, entry: _Listening) -> None:
        self.interruptions += 1
        self._lost.add(entry.name)
        self._read_rest(entry)
        self._stop(entry)

    def _read_rest(self, entry: _Listening) -> None:
        """What came before the end: the kernel gives up a block that is not full when its time has
        come, and the first read after the end may only say that it is the end."""
        time.sleep(2 * self._timeout_ms / 1000)
        for _ in range(2):
            with contextlib.suppress(CaptureError):
                while entry.handle.read(entry.counter.add):
                    pass

    def _stop(self, *entries: _Listening) -> None:
        for entry in entries:
            self._dropped_before_packets += entry.handle.dropped_packets()
            self._left += entry.counter.drain()
            entry.handle.close()
            del self._listening[entry.name]
        self.interfaces = tuple(self._listening)
        if self._kernel is not None and entries:
            self._left += self._kernel.release(*(entry.index for entry in entries))

    def _follow(self) -> None:
        """After a change: new addresses, interfaces that went, came back, or are others now."""
        self._tried_s = time.monotonic()
        wanted = self._wanted()
        addresses = local_addresses()
        if self._kernel is not None:
            self._kernel.set_local_addresses(addresses)
        for entry in list(self._listening.values()):
            interface = wanted.get(entry.name)
            if interface is not None and interface.index == entry.index:
                entry.counter.set_local_addresses(addresses)
                entry.counter.own_mac = interface.mac or None
            elif self._names is None and interface is None:
                self._stop(entry)
            else:
                _log.warning("cannot read %s any more: it was replaced or removed", entry.name)
                self._interrupt(entry)
        for name, interface in wanted.items():
            if name not in self._listening:
                try:
                    self._open(interface)
                except ProcnetError as error:
                    _log.info("%s", error)
                    self._lost.add(name)
                else:
                    self._lost.discard(name)
        # When one that is not there is back, the watch tells; a container's device never is.
        self._lost &= wanted.keys()


def _eventfd() -> int:
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise CaptureError(f"cannot capture: {error.strerror}") from error
