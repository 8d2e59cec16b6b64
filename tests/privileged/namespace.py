"""A network namespace, and the programs that run in it."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import re
import secrets
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.privileged.backlog import raised_backlog, release_backlog

TOP = Path(__file__).resolve().parents[2]
TRAFFIC = TOP / "tests" / "workloads" / "traffic.py"
NETNS_DIRECTORY = Path("/run/netns")
WAIT_S = 20.0
"""How long to wait for anything that should happen at once."""
CALL_S = 180.0
"""In an emulated machine on a busy one a monitor alone takes half a minute to start."""

# On a busy machine TCP takes a late ACK for a lost packet and sends the last one again: no tail
# loss probes, and two seconds before a retransmission. Before 6.11 only a route can say so.
LOOPBACK_UP = """
set -e
ip link set lo up
cd /proc/sys/net/ipv4
echo 0 > tcp_early_retrans
if [ -e tcp_rto_min_us ]; then
    echo 2000000 > tcp_rto_min_us
else
    local="dev lo table local proto kernel"
    for to in 127.0.0.0/8 127.0.0.1; do
        ip route change local $to $local scope host src 127.0.0.1 rto_min 2s
    done
    ip -6 route add local ::1 $local metric 1 rto_min 2s
    ip -6 route delete local ::1 $local metric 0
fi
"""

T = TypeVar("T")


class LabError(Exception):
    """The laboratory itself failed: no result of procnet's."""


def run(argv: Sequence[str], *, stdin: str | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def in_child(work: Callable[..., T], *args: object) -> T:
    """What a function returns in a process of its own: libbpf keeps what it once found out."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        # What it raises must not go on in a second copy of what we do.
        try:
            os.close(readable)
            with os.fdopen(writable, "wb") as stream:
                pickle.dump(work(*args), stream)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writable)
    with os.fdopen(readable, "rb") as stream:
        found = stream.read()
    assert os.waitpid(child, 0)[1] == 0
    result: T = pickle.loads(found)
    return result


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
    """The condition's first true value."""
    deadline = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout_s:g} s in vain for: {what}")
        time.sleep(0.01)


class Namespace:
    """A network namespace that lives as long as the ``with``; its loopback device is up.

    ``ipv4`` and ``ipv6`` are the addresses to talk to it: those of the cable, or the loopback ones.
    """

    def __init__(self, role: str = "one") -> None:
        self.name = f"pn-{os.getpid()}-{secrets.token_hex(3)}-{role}"
        self.path = NETNS_DIRECTORY / self.name
        self.inode = 0
        self.ipv4 = "127.0.0.1"
        self.ipv6 = "::1"
        self._started: list[subprocess.Popen[Any]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Namespace:
        remove_stale()
        atexit.register(self.close)
        try:
            self._stack.enter_context(raised_backlog())
            self._stack.callback(self._remove)
            run(["ip", "netns", "add", self.name])
            self.inode = self.path.stat().st_ino
            self.run(["sh", "-c", LOOPBACK_UP])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what was started in the namespace and removes it. May be called again."""
        atexit.unregister(self.close)
        self._stack.close()

    def _remove(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self._started.clear()
        if self.path.exists():
            _delete_namespace(self.name)

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` in here: same pid, with a /sys of this namespace."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(self, argv: Sequence[str], *, stdin: str | None = None) -> str:
        """Runs a command in here that must succeed, and returns its standard output."""
        return run(self.argv(argv), stdin=stdin)

    def resent_segments(self) -> int:
        """How many segments TCP has sent again in here so far (RetransSegs, RFC 4022)."""
        names, values = (
            line.split()
            for line in self.run(["cat", "/proc/net/snmp"]).splitlines()
            if "Tcp:" in line
        )
        return int(dict(zip(names, values, strict=True))["RetransSegs"])

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a command in here. It is killed when the namespace closes, if not before."""
        process = subprocess.Popen(self.argv(argv), **options)
        self._started.append(process)
        return process

    def call(self, function: Callable[..., T], *args: Any, timeout_s: float = CALL_S) -> T:
        """What a module-level function returns when a new process calls it in here.

        Arguments and the result travel as pickles; what the function raises, is raised.
        """
        request = pickle.dumps((function, args))
        code = "from tests.privileged.namespace import answer_call; answer_call()"
        argv = self.argv([sys.executable, "-c", code])
        done = subprocess.run(
            argv, input=request, stdout=subprocess.PIPE, cwd=TOP, timeout=timeout_s
        )
        if done.returncode != 0:
            raise LabError(f"{function.__qualname__} in {self.name} died: {done.returncode}")
        succeeded, outcome = pickle.loads(done.stdout)
        if not succeeded:
            raise outcome
        result: T = outcome
        return result

    def traffic(self, role: str, **options: Any) -> Traffic:
        """Starts tests/workloads/traffic.py in here and waits until it is ready.

        ``traffic("tcp-client", address=…, port=…, bytes=…, hold=True)``: keyword ``message_size``
        is its option ``--message-size``, and True an option without a value.
        """
        argv = [sys.executable, "-S", "-E", str(TRAFFIC), role]
        for name, value in options.items():
            if value is False or value is None:
                continue
            argv.append("--" + name.replace("_", "-"))
            if value is not True:
                argv.append(str(value))
        process = self.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return Traffic(process)


class Traffic:
    """A running traffic.py, which is the process that procnet should name. ``ready``: its line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.ready = self._read_line("ready")
        self.done: dict[str, Any] | None = None

    @property
    def pid(self) -> int:
        """The process's pid."""
        return int(self.ready["pid"])

    @property
    def start_time_ns(self) -> int:
        """When it started, since boot, in the kernel's ticks of 10 ms: as in ProcessId."""
        return int(self.ready["start_time_ticks"]) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))

    @property
    def port(self) -> int:
        """Its own port."""
        return int(self.ready["local"][1])

    def tell(self, word: str) -> None:
        """Writes a line to its standard input: ``go`` after --wait, ``quit`` after --hold."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def go(self) -> None:
        """Lets a generator that was started with ``wait=True`` begin."""
        self.tell("go")

    def moved(self) -> dict[str, Any]:
        """Its second line, printed when all bytes have moved. A held socket is still open then."""
        if self.done is None:
            self.done = self._read_line("done")
        return self.done

    def tapped_bytes(self) -> int:
        """Payload that a tap must have seen of it: what TCP sent again is there twice."""
        done = self.moved()
        connections = (each["tcp"] for each in done["connections"] if "tcp" in each)
        again = sum(told["retransmitted_bytes"] for told in connections)
        return int(done["sent_payload_bytes"]) + again

    def finish(self) -> dict[str, Any]:
        """Lets it close and end, if it waits for that; the line of ``moved()``. It must succeed."""
        done = self.moved()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()  # a held generator takes this for "quit"
        status = self.process.wait(WAIT_S)
        if status != 0 or not done["ok"]:
            raise LabError(f"traffic generator {self.pid}: exit status {status}, {done}")
        return done

    def _read_line(self, event: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        with _alarm(WAIT_S, f"the generator's line {event!r}"):
            line = self.process.stdout.readline()
        if not line:
            raise LabError(f"traffic generator ended with {self.process.wait()}, no {event!r}")
        message: dict[str, Any] = json.loads(line)
        if message["event"] != event:
            raise LabError(f"traffic generator: {event!r} was due, came {message}")
        return message


def remove_stale() -> None:
    """Removes what a laboratory left behind whose process was killed."""
    for path in NETNS_DIRECTORY.glob("pn-*"):
        owner = re.match(r"pn-(\d+)-", path.name)
        if owner and not Path("/proc", owner[1]).exists():
            _delete_namespace(path.name)
    release_backlog("")


def _delete_namespace(name: str) -> None:
    """Ends the processes that are still in there (they would keep it alive) and removes it."""
    with contextlib.suppress(LabError):
        for pid in run(["ip", "netns", "pids", name]).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    with contextlib.suppress(LabError):  # another laboratory may have swept it away just now
        run(["ip", "netns", "delete", name])


@contextlib.contextmanager
def _alarm(timeout_s: float, what: str) -> Iterator[None]:
    """Breaks off a read that nothing answers (main thread only)."""

    def ring(*_: object) -> None:
        raise LabError(f"waited {timeout_s:g} s in vain for: {what}")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def answer_call() -> None:
    """The other end of ``Namespace.call``, in the new process."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the function prints is for a person
    request = sys.stdin.buffer.read()
    outcome: tuple[bool, object]
    try:
        function, args = pickle.loads(request)
        outcome = (True, function(*args))
    except Exception as error:  # goes to the caller, who raises it
        outcome = (False, error)
    answer.write(pickle.dumps(outcome))
    answer.close()
