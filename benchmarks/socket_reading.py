"""What does it take to read what live sockets have moved, when they are many?

    sudo unshare --net .venv/bin/python benchmarks/socket_reading.py [--sockets 20000] [--rounds 23]

Datagram sockets that are connected over loopback; the receiver is one of them and the only one with
several remote ends. Before each reading all of them send, or one in a hundred, or none. CPU time of
this thread for a reading, the least and the median: of the kernel's iterator alone, and of all that
makes counts of flows from it. The sockets of everybody else on the machine are read too.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from procnet.bpf import socket_counts
from procnet.bpf.core import CoreOwners

SHARES = {"all": 1, "one in 100": 100, "none": 0}


def cpu_ms(work: Callable[[], object]) -> float:
    began_ns = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began_ns) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sockets", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=23, help="at least 2")
    arguments = parser.parse_args()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    files = arguments.sockets + 100
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, most), most))
    if most < files:
        sys.exit(f"ulimit -Hn {most} is less than {files}")
    owners = CoreOwners.open(counting=True)
    counts = owners.counts
    assert counts is not None
    with contextlib.ExitStack() as stack:
        stack.callback(owners.close)
        receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        receiver.bind(("127.0.0.1", 0))
        senders = []
        for _ in range(arguments.sockets):
            sender = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sender.connect(receiver.getsockname())
            senders.append(sender)
        print(f"{'who moved':12} {'iterator':>20} {'all of it':>20}   CPU ms: least, median")
        for name, step in SHARES.items():
            raw, whole = [], []
            for number in range(arguments.rounds):
                for each in senders[:: step or len(senders) + 1] if step else ():
                    each.send(b"x")
                owners.read()
                if number % 2:
                    # Read as rows, and not told of: the next drain has it.
                    raw.append(cpu_ms(lambda: list(owners._bpf.run_iterator(
                        socket_counts.ITERATOR, "counters"))))  # fmt: skip
                    counts.drain(surely=True)
                else:
                    whole.append(cpu_ms(counts.drain))
            cells = (f"{min(each):9.2f} {statistics.median(each):9.2f}" for each in (raw, whole))
            print(f"{name:12} {'  '.join(cells)}")


if __name__ == "__main__":
    main()
