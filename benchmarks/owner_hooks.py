"""What do the owner hooks cost the processes that they watch, for each call?

    unshare --net .venv/bin/python benchmarks/owner_hooks.py [--rounds 31]

Compiles owner_hooks.c (gcc) and runs each of its operations with nothing attached, with the CO-RE
hooks, with those that count at the sockets too, and with the kprobes (or says why not), in turns,
while a thread reads the events as a monitor does. Beside them, what no counting at a socket can go
below (least_hooks.bpf.c, clang): two programs that do nothing, and two that only add, and know no
owner. Of a run counts the block that took the least
time, since others use this machine too. Then the nanoseconds of one operation, the least of all
rounds, and how much more that is than with nothing attached: the median of the rounds, each
compared with itself, and the quartiles in brackets. Lost events end the benchmark: one that finds
no room costs less.

The operations send 64 bytes over loopback, both ends in one process. What udp-sendto and udp-send
send is delivered, and taken between the measurements. Closed connections do not stay in TIME_WAIT,
so that none has to wait for a port; that makes a connection cheaper than elsewhere, and the hooks'
share of it larger. Another monitor on the machine hooks these processes too: run it alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from procnet.bpf.cgroup import open_root
from procnet.bpf.core import CoreOwners
from procnet.bpf.kprobe import KprobeOwners
from procnet.bpf.libbpf import BpfObject
from procnet.bpf.telling import Telling
from procnet.errors import ProcnetError

BLOCKS = 17
# Batches of 64 operations in a block, so that one takes about two milliseconds and the ring holds a
# run's events; and what the hooks may add, in percent, where there is a target.
OPERATIONS: dict[str, tuple[int, int | None]] = {
    "udp-sendto": (41, 12),
    "udp-send": (41, None),
    "udp-send-recvfrom": (31, None),
    "tcp-send-recv": (17, None),
    "tcp-connect-accept-close": (3, 15),
}
# A recv() without the address brings in a hook that costs all of them something.
WAKES = "udp-send-recv"
AWAKE: dict[str, tuple[int, int | None]] = {
    "udp-send-recv": (31, None),
    "udp-sendto": (41, None),
    "tcp-send-recv": (17, None),
}
ROWS = OPERATIONS | {f"{name} *": figures for name, figures in AWAKE.items()}
COUNTING = "CO-RE, counting"
"""The same hooks, which count at the sockets too."""
COUNTING_TARGETS = {"udp-sendto": 8, "tcp-send-recv": 10, "tcp-connect-accept-close": 15}
SOURCES: dict[str, Callable[[], Telling]] = {
    "CO-RE": CoreOwners.open,
    COUNTING: lambda: CoreOwners.open(counting=True),
    "kprobes": KprobeOwners.open,
}
LEAST: dict[str, frozenset[str]] = {
    "two empty programs": frozenset(("empty_egress", "empty_ingress")),
    "the least counting": frozenset(("least_egress", "least_ingress")),
}
READ_EVERY_S = 0.02
DRAIN_EVERY_S = 0.1
TIME_WAIT_LIMIT = Path("/proc/sys/net/ipv4/tcp_max_tw_buckets")


@contextlib.contextmanager
def attached(source: str) -> Iterator[None]:
    """The hooks are there, and their events are read, for as long as the block lasts."""
    owners = SOURCES[source]()
    done = threading.Event()

    def repeat(read: Callable[[], object], every_s: float) -> None:
        while not done.wait(every_s):
            read()

    readers = [threading.Thread(target=repeat, args=(owners.read, READ_EVERY_S))]
    if isinstance(owners, CoreOwners) and owners.counts is not None:
        readers.append(threading.Thread(target=repeat, args=(owners.counts.drain, DRAIN_EVERY_S)))
    for reader in readers:
        reader.start()
    try:
        yield
    finally:
        done.set()
        for reader in readers:
            reader.join()
        lost = owners.events_lost()
        owners.close()
    if lost:
        sys.exit(f"{source} lost {lost} events: the figures would be too good")


@contextlib.contextmanager
def least(image: bytes, programs: frozenset[str]) -> Iterator[None]:
    """These programs are on every packet of every socket for as long as the block lasts."""
    with contextlib.ExitStack() as held:
        root = open_root(Path("/proc"))
        held.callback(os.close, root)
        bpf = BpfObject(image)
        held.callback(bpf.close)
        bpf.choose(programs)
        bpf.load()
        for program in programs:
            bpf.attach_cgroup(program, root)
        yield


def run_all(program: Path) -> dict[str, float]:
    """Nanoseconds of each operation, from the best block of a run."""

    def run(operation: str, batches: int) -> float:
        command = [program, operation, str(BLOCKS), str(batches)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
        return min(map(float, done.stdout.split()))

    best = {name: run(name, batches) for name, (batches, _) in OPERATIONS.items()}
    run(WAKES, AWAKE[WAKES][0])
    best |= {f"{name} *": run(name, batches) for name, (batches, _) in AWAKE.items()}
    return best


def measure(
    program: Path, image: bytes, sources: list[str], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """For each source, and for nothing attached, what each round has found."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("nothing", *LEAST, *sources)}
    for number in range(rounds):
        order = list(found)
        for name in order if number % 2 else reversed(order):
            if name in LEAST:
                hooks = least(image, LEAST[name])
            else:
                hooks = attached(name) if name in SOURCES else contextlib.nullcontext()
            with hooks:
                found[name].append(run_all(program))
    return found


def show(source: str, found: dict[str, list[dict[str, float]]]) -> None:
    print(f"{source:25} {'nothing':>8} {'hooks':>8} {'added':>14}  {'quartiles':18} target")
    for operation, (_, target) in ROWS.items():
        off = [each[operation] for each in found["nothing"]]
        on = [each[operation] for each in found[source]]
        added = [(with_it / without - 1) * 100 for without, with_it in zip(off, on, strict=True)]
        low, middle, high = statistics.quantiles(added, n=4)
        if source in LEAST:
            target = None
        elif source == COUNTING:
            target = COUNTING_TARGETS.get(operation)
        aim = "" if target is None else f"+{target} % {'ok' if middle <= target else 'MISSED'}"
        print(
            f"{operation:25} {min(off):5.0f} ns {min(on):5.0f} ns"
            f" {min(on) - min(off):+5.0f} ns {middle:+4.1f} %"
            f"  [{low:+4.1f} % {high:+4.1f} %]  {aim}"
        )
    print("* once a process has taken a datagram without asking from whom")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31, help="at least 2")
    rounds = parser.parse_args().rounds
    if len(Path("/proc/net/route").read_text().splitlines()) > 1:
        sys.exit("run it in a network namespace of its own: unshare --net")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    TIME_WAIT_LIMIT.write_text("1")
    sources = []
    for name in SOURCES:
        try:
            with attached(name):
                sources.append(name)
        except ProcnetError as error:
            print(f"without {name}: {str(error).splitlines()[0]}")
    if not sources:
        return
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "owner_hooks")
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["gcc", "-O2", "-o", program, source], check=True)
        image = Path(directory, "least_hooks.bpf.o")
        includes = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
        argv = ["clang", "-target", "bpf", "-O2", "-g", includes, "-o", image, "-c"]
        subprocess.run([*argv, source.with_name("least_hooks.bpf.c")], check=True)
        found = measure(program, image.read_bytes(), sources, rounds)
    for name in (*LEAST, *sources):
        show(name, found)


if __name__ == "__main__":
    main()
