"""How long does the kernel's snapshot of 20 000 sockets in 200 processes take, against looking?

Run as root, from the top directory (it makes a network namespace of its own, and everything it
starts ends with it)::

    unshare --net .venv/bin/python -m benchmarks.snapshot

It prints one JSON object: for each way the least and the median of its rounds in milliseconds of
processor time (that is all the time there is in it, on a machine that is idle), and the median over
the rounds of its time to that of ``kernel_ms``. ``kernel_rows_ms`` is the iterator
alone, run and read; ``kernel_ms`` is that made into a SocketScan, as the core rung looks;
``scan_cold_ms`` and ``scan_warm_ms`` are SocketScanner with and without a walk over all
descriptors; ``psutil_ms`` is ``psutil.net_connections("inet")``. The ways take turns in every
round, so that a busy machine is busy for all of them. Every count of sockets is checked.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from benchmarks.proc_scan import PROCESSES, ROUNDS, SOCKETS_EACH, holders
from procnet.bpf.core import CoreOwners
from procnet.bpf.snapshot import OPEN_SOCKET
from procnet.model import SocketScan
from procnet.sockets.scanner import SocketScanner

SOCKETS = PROCESSES * SOCKETS_EACH


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    netns = os.stat("/proc/self/ns/net").st_ino
    owners = CoreOwners.open(netns=netns)
    try:
        with holders():
            times = measured(owners, netns)
    finally:
        owners.close()
    figures: dict[str, object] = {"sockets": SOCKETS, "processes": PROCESSES}
    for name, each in times.items():
        figures[f"{name}_ms"] = [round(min(each), 1), round(statistics.median(each), 1)]
    for name, each in times.items():
        ratios = [ours / kernel for ours, kernel in zip(each, times["kernel"], strict=True)]
        figures[f"{name}_to_kernel"] = round(statistics.median(ratios), 2)
    print(json.dumps(figures, indent=1))


def measured(owners: CoreOwners, netns: int) -> dict[str, list[float]]:
    """The milliseconds of each round, by way."""
    scanner = SocketScanner(max_age_s=3600)
    ways: dict[str, Callable[[], int]] = {
        "kernel_rows": lambda: (
            sum(map(len, owners._bpf.run_iterator("on_open_file"))) // OPEN_SOCKET.size
        ),
        "kernel": lambda: held(owners.snapshot()),
        "scan_cold": lambda: held(scanner.scan(netns, refresh=True)),
        "scan_warm": lambda: held(scanner.scan(netns)),
        "psutil": lambda: len(psutil.net_connections("inet")),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, look in ways.items():
            started = time.thread_time()
            seen = look()
            times[name].append((time.thread_time() - started) * 1000)
            if seen != SOCKETS:
                sys.exit(f"{name} saw {seen} sockets instead of {SOCKETS}")
    return times


def held(scan: SocketScan) -> int:
    """How many sockets it shows with a holder."""
    return len(scan.holders)


if __name__ == "__main__":
    main()
