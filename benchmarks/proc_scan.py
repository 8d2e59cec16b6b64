"""How long does a look at 20 000 sockets in 200 processes take, from /proc alone?

Run as root, from the top directory (it makes a network namespace of its own, and everything it
starts ends with it)::

    unshare --net .venv/bin/python -m benchmarks.proc_scan

It prints one JSON object: milliseconds of a cold scan (tables and a walk over all descriptors), of
a warm one (nothing new, no walk) and of ``psutil.net_connections("inet")``, each the least and the
median of its rounds; the ratios of the medians; and the peak resident memory of each in a process
of its own. Every count of sockets is checked, so that nobody is fast by seeing less.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROCESSES = 200
SOCKETS_EACH = 100
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--measure", choices=["none", "ours", "psutil"], help=argparse.SUPPRESS)
    measure = parser.parse_args().measure
    if measure:
        print(json.dumps(measured(measure)))
        return
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with holders():
        results = {
            which: json.loads(
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.proc_scan", "--measure", which],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for which in ("none", "ours", "psutil")
        }
    ours, theirs = results["ours"], results["psutil"]
    print(
        json.dumps(
            {
                "sockets": PROCESSES * SOCKETS_EACH,
                "processes": PROCESSES,
                **ours,
                **theirs,
                "psutil_to_cold": round(theirs["psutil_ms"][1] / ours["cold_ms"][1], 1),
                "psutil_to_warm": round(theirs["psutil_ms"][1] / ours["warm_ms"][1], 1),
                "interpreter_peak_rss_kib": results["none"]["none_peak_rss_kib"],
            },
            indent=1,
        )
    )


@contextmanager
def holders() -> Iterator[None]:
    """PROCESSES processes with SOCKETS_EACH sockets each, for as long as the block lasts."""
    ready_read, ready_write = os.pipe()
    pids = []
    try:
        for _ in range(PROCESSES):
            pid = os.fork()
            if pid == 0:
                hold(ready_write)
            pids.append(pid)
        told = 0
        while told < PROCESSES:
            told += len(os.read(ready_read, PROCESSES))
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        os.close(ready_read)
        os.close(ready_write)


def hold(ready: int) -> None:
    """Never returns: half of the connections' ends, the listener and a UDP socket, then waits."""
    parent = os.getppid()
    listener = socket.create_server(("127.0.0.1", 0), backlog=SOCKETS_EACH)
    kept = [listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
    kept[1].bind(("127.0.0.1", 0))
    while len(kept) < SOCKETS_EACH:
        kept.append(socket.create_connection(listener.getsockname()))
        kept.append(listener.accept()[0])
    os.write(ready, b".")
    # The benchmark kills us; where it was killed itself, nobody would.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def measured(which: str) -> dict[str, object]:
    """The figures of one contestant, measured in this process."""
    figures: dict[str, object] = {}
    expected = PROCESSES * SOCKETS_EACH
    if which == "ours":
        from procnet.sockets.procfs import ProcfsScanner

        netns = os.stat("/proc/self/ns/net").st_ino
        scanner = ProcfsScanner(max_age_s=3600)

        def ours(refresh: bool) -> int:
            scan = scanner.scan(netns, refresh=refresh)
            if not all(scan.holders.get(s.inode) for s in scan.sockets):
                sys.exit("a socket has no holder")
            return len(scan.sockets)

        figures["cold_ms"] = timed(lambda: ours(True), expected)
        walks = scanner.fd_walks
        figures["warm_ms"] = timed(lambda: ours(False), expected)
        if scanner.fd_walks != walks:
            sys.exit("a warm scan walked")
    elif which == "psutil":
        import psutil

        figures["psutil_ms"] = timed(lambda: len(psutil.net_connections("inet")), expected)
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    figures[f"{which}_peak_rss_kib"] = int(peak[1]) if peak else None
    return figures


def timed(look: Callable[[], int], expected: int) -> list[float]:
    """The least and the median of the rounds, in milliseconds."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        seen = look()
        times.append((time.perf_counter() - started) * 1000)
        if seen != expected:
            sys.exit(f"saw {seen} sockets instead of {expected}")
    return [round(min(times), 1), round(statistics.median(times), 1)]


if __name__ == "__main__":
    main()
