"""How long does a look at 20 000 sockets in 200 processes take, by sock_diag and by /proc?

Run as root, from the top directory (it makes a network namespace of its own, and everything it
starts ends with it)::

    unshare --net .venv/bin/python -m benchmarks.proc_scan

It prints one JSON object: milliseconds of a cold scan (tables and a walk over all descriptors) and
of a warm one (nothing new, no walk) with the tables from sock_diag and from /proc/net, of the two
parts of the first (``diag_tables_ms``, ``fd_walk_ms``), of the system calls alone that such a walk
cannot do without (``fd_walk_floor_ms``: getdents and readlink, nothing kept), and of
``psutil.net_connections("inet")``: each the least and the median of its rounds. Then the ratios of
the medians, and the peak resident memory of each in a process of its own. Every count of sockets is
checked, so that nobody is fast by seeing less.
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
ROUNDS = 11
CONTESTANTS = ("none", "diag", "proc", "psutil")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--measure", choices=CONTESTANTS, help=argparse.SUPPRESS)
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
            for which in CONTESTANTS
        }
    figures: dict[str, object] = {"sockets": PROCESSES * SOCKETS_EACH, "processes": PROCESSES}
    for which in CONTESTANTS:
        figures |= results[which]
    theirs = results["psutil"]["psutil_ms"][1]
    for name in ("diag_cold", "diag_warm", "proc_cold", "proc_warm"):
        figures[f"psutil_to_{name}"] = round(theirs / results[name[:4]][f"{name}_ms"][1], 1)
    print(json.dumps(figures, indent=1))


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
    if which in ("diag", "proc"):
        figures |= scanned(which, expected)
    elif which == "psutil":
        import psutil

        figures["psutil_ms"] = timed(lambda: len(psutil.net_connections("inet")), expected)
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    figures[f"{which}_peak_rss_kib"] = int(peak[1]) if peak else None
    return figures


def scanned(which: str, expected: int) -> dict[str, object]:
    """Our figures, with the tables from sock_diag or from /proc."""
    from procnet.sockets.diag import DiagTables
    from procnet.sockets.holders import HolderMap
    from procnet.sockets.scanner import SocketScanner

    figures: dict[str, object] = {}
    netns = os.stat("/proc/self/ns/net").st_ino
    scanner = SocketScanner(max_age_s=3600, use_diag=which == "diag")

    def ours(refresh: bool) -> int:
        scan = scanner.scan(netns, refresh=refresh)
        if not all(scan.holders.get(s.inode) for s in scan.sockets):
            sys.exit("a socket has no holder")
        return len(scan.sockets)

    figures[f"{which}_cold_ms"] = timed(lambda: ours(True), expected)
    walks = scanner.fd_walks
    figures[f"{which}_warm_ms"] = timed(lambda: ours(False), expected)
    if scanner.fd_walks != walks:
        sys.exit("a warm scan walked")
    if bool(scanner.diag_tables) != (which == "diag"):
        sys.exit("the tables came from elsewhere")
    if which == "diag":
        diag, inodes = DiagTables(), [s.inode for s in scanner.scan(netns).sockets]
        figures["diag_tables_ms"] = timed(
            lambda: sum(map(len, diag.read(netns).values())), expected
        )
        holders = HolderMap(max_age_s=3600)
        figures["fd_walk_ms"] = timed(lambda: len(holders.of(inodes, refresh=True)), expected)
        figures["fd_walk_floor_ms"] = timed(bare_walk, expected)
    return figures


def bare_walk() -> int:
    """The sockets among all descriptors, by the system calls of a walk and as good as no Python."""
    count = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            table = os.open(f"/proc/{pid}/fd", os.O_RDONLY)
        except OSError:
            continue
        try:
            links = [os.readlink(name, dir_fd=table) for name in os.listdir(table)]
        except OSError:
            continue
        finally:
            os.close(table)
        sockets = sum(1 for link in links if link.startswith("socket:"))
        count += sockets if sockets == SOCKETS_EACH else 0  # one of ours
    return count


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
