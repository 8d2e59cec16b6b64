"""How much of a core does procnet itself take, at rest, in a flood and beside a bulk transfer?

Run as root, from the top directory, in a network namespace of its own::

    unshare --net .venv/bin/python benchmarks/own_cpu.py [TREE ...]

A ``Monitor(["lo"])`` of its own process, which is asked for a report each second, with each engine
and each kind of traffic over loopback. In % of a core: all of its process, and each of its threads;
the kernel's own time on their behalf is within. The kernel's figures (/proc/PID/task/*/schedstat,
nanoseconds). With several TREEs (top directories of procnet) each round measures each of them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
ROUNDS = 3
SPAN_S = 5.0
SETTLE_S = 1.5
PORT = 5007
THREADS = ("main", "capture", "owners")
MONITOR = """
import sys, procnet
with procnet.Monitor(["lo"], kernel="core", counting=sys.argv[1]) as monitor:
    print(monitor.features.counting, flush=True)
    for report in monitor:
        print(report.totals.sent.packets, flush=True)
"""
UDP_FLOOD = f"""
import ctypes, os, signal, socket
there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
there.bind(("127.0.0.1", {PORT}))
if os.fork():
    here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    here.connect(("127.0.0.1", {PORT}))
    data = bytes(64)
    while True:
        here.send(data)
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
while True:
    there.recv(64)
"""
BULK_TCP = f"""
import os, socket
server = socket.create_server(("127.0.0.1", {PORT}))
if os.fork():
    here = socket.create_connection(("127.0.0.1", {PORT}))
    while True:
        here.sendall(bytes(1 << 18))
there, _ = server.accept()
while there.recv(1 << 18):
    pass
"""
TRAFFIC = {"idle": "", "UDP flood, 64 bytes": UDP_FLOOD, "bulk TCP": BULK_TCP}


@contextmanager
def running(code: str, *arguments: str, tree: Path = TOP) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=tree, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def spent_ns(pid: int) -> list[int]:
    # By number: in the order in which the threads were started.
    tasks = sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda task: int(task.name))
    return [int((task / "schedstat").read_text().split()[0]) for task in tasks]


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        sys.exit("the monitor ended")
    return text.strip()


def measure(tree: Path, engine: str, traffic: str) -> tuple[list[float], float]:
    """Share of a core of each thread, and packets a second."""
    with running(MONITOR, engine, tree=tree) as monitor:
        if line(monitor) != engine:
            sys.exit(f"counting is not by {engine}")
        with running(traffic or "import time; time.sleep(1e6)"):
            time.sleep(SETTLE_S)
            before_ns, began_s = spent_ns(monitor.pid), time.monotonic()
            time.sleep(SPAN_S)
            after_ns, span_s = spent_ns(monitor.pid), time.monotonic() - began_s
            packets = [int(line(monitor)) for _ in range(int(SETTLE_S + SPAN_S))]
    shares = [
        (after - before) / span_s / 1e9 for before, after in zip(before_ns, after_ns, strict=True)
    ]
    return shares, statistics.median(packets[2:])


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    trees = [Path(argument).resolve() for argument in sys.argv[1:]] or [TOP]
    found: dict[tuple[str, str, Path], list[list[float]]] = defaultdict(list)
    for _ in range(ROUNDS):
        for engine in ("kernel", "python"):
            for name, traffic in TRAFFIC.items():
                for tree in trees:
                    shares, packets = measure(tree, engine, traffic)
                    found[engine, name, tree].append([sum(shares), *shares, packets])
    print(f"{'':32}{'all':>9}{''.join(f'{name:>9}' for name in THREADS)}{'packets/s':>12}")
    for (engine, name, tree), rounds in found.items():
        *shares, packets = (statistics.median(values) for values in zip(*rounds, strict=True))
        cells = "".join(f"{share * 100:7.2f} %" for share in shares)
        print(f"{f'{engine}, {name}':32}{cells}{packets:12.0f}  {tree if trees[1:] else ''}")


if __name__ == "__main__":
    main()
