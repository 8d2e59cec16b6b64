"""The corridor: opens the doors in order, owns the threads and the clock, ticks.

One thread reads packets and does nothing else, so that a long look at the sockets costs no packet;
another reads the owners and settles the ledger. The caller's thread only takes reports.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from procnet import ladder
from procnet.beside import Beside
from procnet.bpf.socket_counts import SocketCounts
from procnet.capture.engine import CROWD_ENTRIES
from procnet.capture.tap import Tap
from procnet.edge import Edge
from procnet.engines import open_engine
from procnet.errors import ProcnetError, UsageError
from procnet.ledger.flows import MAX_FLOWS
from procnet.ledger.ledger import Account, Ledger
from procnet.model import Features, FlowCount, Loss, SocketScan
from procnet.report.report import Report, build_report
from procnet.translated import may_be_elsewhere
from procnet.witnesses import Witnesses, open_hooks

TICK_S = 0.1
"""How often witnesses are read and runs are settled at the least; sooner if a flow is new."""
_BUSY_S = 0.05
_MAX_HANDED_OVER = (
    1 << 15
)  # flows, half a second's work; more stay in the tap, where they are smaller
_BREATH_S = 0.002
_YIELD_S = 0.001
_IDLE_S = 0.5
_LOOK_WAIT_S = 0.5
_LINGER_S = 0.15  # at the end, for the kernel to give up a block of packets that is not full

_log = logging.getLogger("procnet")
# Without a handler of the program's, Python itself would print warnings (logging.lastResort).
_log.addHandler(logging.NullHandler())


class Monitor:
    """Who sends and receives what, from now on.

    ``interfaces``: names, or None for every interface that is up and carries this host's own
    addresses, and ``lo``. ``interval_s``: length of the reports that iterating gives, in seconds.
    ``kernel`` (auto, core, kprobe, off) and ``counting`` (auto, kernel, socket, python) force a
    rung of the ladder. ``containers`` (auto, on, off): name processes of other network namespaces,
    and count their sockets where sockets are counted; auto: there, and where this one forwards
    packets. ``max_flows``: rows held at most; totals stay exact.
    ``compare_sockets``: sockets are counted beside the capture, and reports tell what only the
    capture saw (``Report.only_on_wire``); not with ``counting="socket"``, which has none.

    Making one does nothing. ``start()``, or entering it as a context, raises ``CaptureError`` for
    an interface that cannot be read, ``AccessError`` where a privilege is missing, and
    ``UnsupportedError`` where a forced rung cannot be had; ``UsageError`` is raised at once.
    """

    def __init__(
        self,
        interfaces: Sequence[str] | None = None,
        *,
        interval_s: float = 1.0,
        kernel: str = "auto",
        counting: str = "auto",
        containers: str = "auto",
        max_flows: int = MAX_FLOWS,
        compare_sockets: bool = False,
    ) -> None:
        if isinstance(interfaces, str):
            raise UsageError(f"interfaces is a list of names: [{interfaces!r}]")
        if not 0 < interval_s < float("inf"):
            raise UsageError(f"interval_s must be a positive number of seconds, not {interval_s!r}")
        if max_flows < 1:
            raise UsageError(f"max_flows must be at least 1, not {max_flows!r}")
        ladder.check_choices(kernel, counting, containers)
        if compare_sockets and counting == "socket":
            raise UsageError("compare_sockets takes a capture: counting must not be socket")
        self._names = None if interfaces is None else tuple(interfaces)
        self._interval_s = interval_s
        self._kernel, self._counting, self._containers = kernel, counting, containers
        self._compare_sockets = compare_sockets
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._edge = Edge(self._stopping)
        self._handed_over: deque[list[FlowCount]] = deque()
        self._handed_over_until_ns = 0
        self._news = threading.Event()
        self._drain_asked = threading.Event()
        self._look_asked = threading.Event()
        self._looked = threading.Event()
        self._ledger = Ledger(max_flows=max_flows)
        self._features: Features | None = None
        self._tap: Tap | SocketCounts | None = None
        self._beside: Beside | None = None
        self._witnesses: Witnesses | None = None
        self._threads: list[threading.Thread] = []
        self._started_ns = self._interval_ns = self._ended_ns = 0
        self._pid = 0
        self._asking: set[int] = set()
        self._busy = False

    # --- life ---

    def start(self) -> None:
        """Opens the sources, owners before packets, and begins to count."""
        if self._features is not None:
            raise UsageError("a Monitor is started once; make another one")
        self._features = self._choose()
        netns = os.stat("/proc/self/ns/net").st_ino
        try:
            self._witnesses = self._call_witnesses(self._features, netns)
            self._witnesses.take(self._witnesses.scan())
            if self._compare_sockets:
                self._beside = Beside.begin(self._witnesses, self._ledger)
            self._tap, self._features = open_engine(
                self._features, self._names, netns, self._witnesses, self._counting != "auto"
            )
        except BaseException:
            self._close()
            raise
        self._pid = os.getpid()
        self._started_ns = self._interval_ns = time.time_ns()
        try:
            for name, loop in (("capture", self._capture), ("owners", self._own)):
                thread = threading.Thread(
                    target=self._edge.run, args=(loop,), name=f"procnet-{name}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        except BaseException as error:
            # The limit of threads, or a Ctrl-C just now.
            self._stopping.set()
            for thread in self._threads:
                thread.join()
            self._tap.close()
            self._close()
            if isinstance(error, RuntimeError):
                raise ProcnetError(f"no thread for the Monitor: {error}") from error
            raise

    def _choose(self) -> Features:
        named, beside = self._names is not None, self._compare_sockets
        return ladder.choose(
            self._kernel, self._counting, on_interfaces=named, compare_sockets=beside
        )

    def _call_witnesses(self, features: Features, netns: int) -> Witnesses:
        # Hooks see every namespace; packets are captured in this one.
        at_sockets = features.counting == "socket"
        only = None if may_be_elsewhere(self._containers, at_sockets=at_sockets) else netns
        features, events = open_hooks(
            features, kernel=self._kernel, netns=only, compare_sockets=self._compare_sockets
        )
        self._features = features
        with contextlib.ExitStack() as held:
            if events is not None:
                held.callback(events.close)
            witnesses = Witnesses(
                events,
                only,
                self._ledger,
                use_diag=features.owners != "proc",
                on_wire=not at_sockets,
            )
            held.pop_all()
        return witnesses

    def stop(self) -> None:
        """Reads what is still on its way, settles it, and gives everything back. Idempotent.

        May be called from any thread, and from a signal handler; one that interrupts ``report()``
        does not wait for the end. If it is interrupted itself, call it again.
        """
        self._stopping.set()
        self._news.set()
        if self._tap is not None:
            self._tap.wake()
        # Waiting for a thread that waits for what the interrupted caller holds would be forever.
        if threading.get_ident() not in self._asking:
            for thread in self._threads:
                thread.join()

    def __enter__(self) -> Monitor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- answers ---

    @property
    def features(self) -> Features:
        """The rung in use, and why the better ones are not; before the start the one to be tried,
        by looking alone. Then raises ``UnsupportedError`` where ``start()`` would."""
        return self._features or self._choose()

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The interfaces that are being read now."""
        return () if self._tap is None else self._tap.interfaces

    def report(self) -> Report:
        """Everything until now; what has no owner yet, half a second later, is ``PENDING``."""
        with self._asked():
            self._ask_for_a_look()
            with self._lock:
                account, loss = self._ledger.account(), self._loss()
            return self._report(account, loss, self._started_ns)

    def __iter__(self) -> Iterator[Report]:
        """One report for each interval, until ``stop()``; a slow reader gets longer intervals.

        An interval report is about what was settled within it: bytes that wait for their owner are
        in a later one. The last report, after ``stop()``, has all that is left.
        """
        if not self._threads:
            raise UsageError("start the Monitor first: with Monitor() as monitor: …")
        next_s = time.monotonic() + self._interval_s
        ended = False
        while not ended:
            ended = self._stopped.wait(max(0.0, next_s - time.monotonic()))
            with self._asked():
                self._ask_for_a_look()
                with self._lock:
                    account, loss = self._ledger.take_interval(), self._loss()
                report = self._report(account, loss, self._interval_ns)
                self._interval_ns = report.ended_ns
            yield report
            next_s = max(next_s + self._interval_s, time.monotonic())

    def _ask_for_a_look(self) -> None:
        """What was counted until now is drained and settled by a look, or it would be late."""
        if self._tap is None or not self._threads or self._stopped.is_set():
            return
        self._looked.clear()
        self._drain_asked.set()
        self._tap.wake()
        self._looked.wait(_LOOK_WAIT_S)

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        if self._pid not in (0, os.getpid()):
            # The threads are not here, and one of them may have held a lock.
            raise UsageError("a Monitor does not go through fork(): make another one")
        caller = threading.get_ident()
        self._asking.add(caller)
        try:
            yield
        finally:
            self._asking.discard(caller)

    def _loss(self) -> Loss:
        if self._tap is None or self._witnesses is None:
            raise UsageError("start the Monitor first: with Monitor() as monitor: …")
        return Loss(
            capture_dropped_packets=self._tap.dropped_packets,
            events_lost=self._witnesses.events_lost,
            undecodable_packets=self._ledger.undecodable_packets,
            evicted_flows=self._ledger.evicted_flows,
            evicted_runs=self._ledger.evicted_runs,
            evicted_owners=self._ledger.owners.evicted_endpoints,
            vanished_processes=self._witnesses.vanished_processes,
            denied_processes=self._witnesses.denied_processes,
            malformed_rows=self._witnesses.malformed_rows,
            processes_lost=self._witnesses.processes_lost,
            translations_lost=self._ledger.elsewhere.translations.lost,
            unsplit_packets=self._tap.unsplit_packets,
            interrupted_captures=self._tap.interruptions,
            failures=self._edge.failures,
        )

    def _report(self, account: Account, loss: Loss, started_ns: int) -> Report:
        # Without the lock: nothing in an account changes any more, and its rows may be many.
        assert self._witnesses is not None
        return build_report(
            account,
            started_ns=started_ns,
            # The clock may have been set back.
            ended_ns=max(started_ns, self._ended_ns or time.time_ns()),
            process_of=self._witnesses.process,
            loss=loss,
            features=self.features,
        )

    # --- threads ---

    def _capture(self) -> None:
        tap = self._tap
        assert tap is not None
        stop_s = float("inf")
        while time.monotonic() < stop_s:
            if self._stopping.is_set():
                stop_s = min(stop_s, time.monotonic() + _LINGER_S)
            # What the kernel counts wakes nobody; it is in no hurry either, unless the table fills.
            idle_s = TICK_S if tap.counts_in_kernel else _IDLE_S
            busy = self._busy or self._stopping.is_set()
            self._edge.step(tap.wait, _BUSY_S if busy else idle_s)
            self._edge.step(self._hand_over, tap)
        self._edge.step(tap.close)
        self._edge.step(self._hand_over, tap, last=True)

    def _hand_over(self, tap: Tap | SocketCounts, *, last: bool = False) -> None:
        asked = self._drain_asked.is_set()
        if last or asked or tap.is_due:
            until_ns = time.time_ns()
            room = _MAX_HANDED_OVER - sum(map(len, tuple(self._handed_over)))
            counts = tap.drain(None if last else max(0, room))
            self._busy = len(counts) > (CROWD_ENTRIES if tap.counts_in_kernel else 0)
            if counts:
                self._handed_over.append(counts)
                self._news.set()
            if not tap.holds_back:
                self._handed_over_until_ns = until_ns
        if self._beside is not None:
            self._beside.drain(now=asked, last=last)
        if asked:
            self._drain_asked.clear()
            self._look_asked.set()
            self._news.set()

    def _own(self) -> None:
        breath_s = 0 if self._tap is not None and self._tap.counts_in_kernel else _BREATH_S
        while not self._stopping.wait(breath_s):
            self._news.wait(TICK_S)
            self._news.clear()
            self._edge.step(self._tick)
        # The end is here and not in stop(), which the caller may interrupt.
        try:
            self._threads[0].join()
            self._edge.step(self._tick, final=True)
            self._edge.step(self._close)
        finally:
            self._ended_ns = time.time_ns()
            self._stopped.set()

    def _tick(self, *, final: bool = False) -> None:
        witnesses = self._witnesses
        assert witnesses is not None
        asked = self._look_asked.is_set()
        self._look_asked.clear()
        until_ns = self._handed_over_until_ns
        # Counts first: the event of a sender is told before its packet is counted, so whatever was
        # counted until now has its event among those that are read next.
        counts = [
            count for _ in range(len(self._handed_over)) for count in self._handed_over.popleft()
        ]
        with self._lock:
            self._edge.step(witnesses.follow_clock)
        self._step(self._ledger.counting(counts, until_ns))
        if self._beside is not None:
            self._step(self._beside.comparing())
        # Owners are this thread's alone: nobody who asks for a report waits for them.
        self._edge.step(witnesses.observe)
        self._settle()
        scan: SocketScan | None = None
        try:
            scan = witnesses.scan() if final else witnesses.scan_if_due(asked=asked)
        finally:
            if scan is not None:
                # Whoever took what was counted before the look has been told of before its end.
                self._edge.step(witnesses.observe)
                witnesses.take(scan)
            if scan is not None or final:
                self._settle(final=final)
            if final and self._beside is not None:
                with self._lock:
                    self._beside.finish()
            if asked:
                self._looked.set()

    def _settle(self, *, final: bool = False) -> None:
        now_ns = time.time_ns()
        self._step(self._ledger.settling(now_ns, final=final))
        self._ledger.forget(now_ns)

    def _step(self, steps: Iterator[bool]) -> None:
        """Makes the steps; the lock is only held for one at a time."""
        more = True
        while more:
            with self._lock:
                more = next(steps, False)
            if more:
                # A lock of Python is not fair: who waits for it needs time to wake up and take it.
                time.sleep(_YIELD_S)

    def _close(self) -> None:
        if self._tap is not None and not self._threads:
            self._tap.close()
        if self._witnesses is not None:
            self._witnesses.close()
