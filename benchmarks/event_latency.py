"""How long from a system call to the owner event in the caller's hands, and is any event lost?

Run as root, from the top directory, in a network namespace of its own::

    unshare --net .venv/bin/python benchmarks/event_latency.py

Another process sends one datagram to each of ever new (address, port), at 10, 1 000 and 10 000 a
second, and stamps each just before the call. This one waits with poll for CO-RE owners and reads
them; an event is in hand when ``read()`` has returned. Printed for each rate: milliseconds from
stamp to hand (median, 99th percentile, most), the median from stamp to hook, how many flows there
were, how many of their events came, how many events the kernel counted as lost, and the share of
one core that this process used. An event that neither came nor was counted ends it with an error.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from procnet.bpf.clocks import boot_to_wall_ns
from procnet.bpf.core import CoreOwners

RUNS = ((10, 101), (1_000, 5_003), (10_000, 50_021))
"""New flows a second, and how many flows."""
MOST_FLOWS = 50_021
PORTS, FIRST_PORT = 20_011, 20_000
PATIENCE_S = 1.0
"""How long to wait for events once the last datagram is sent."""


def destination(flow: int) -> tuple[str, int]:
    return f"127.0.1.{1 + flow // PORTS}", FIRST_PORT + flow % PORTS


def flow_of(address: bytes, port: int) -> int:
    return (address[3] - 1) * PORTS + port - FIRST_PORT


class Sender:
    """The other process. Its stamps, CLOCK_BOOTTIME in nanoseconds, are in memory of both."""

    def __init__(self, pid: int, orders: int, done: int, stamps: memoryview) -> None:
        self.pid = pid
        self.done = done
        self.stamps = stamps
        self._orders = orders

    def send(self, rate: int, flows: int) -> None:
        """Returns at once; ``done`` is readable when the last has been sent."""
        os.write(self._orders, f"{rate} {flows}\n".encode())


@contextmanager
def sender() -> Iterator[Sender]:
    stamps = memoryview(mmap.mmap(-1, 8 * MOST_FLOWS)).cast("q")
    orders_read, orders_write = os.pipe()
    done_read, done_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(orders_write)
        try:
            obey(orders_read, done_write, stamps)
        finally:
            os._exit(1)
    os.close(orders_read)
    os.close(done_write)
    try:
        yield Sender(pid, orders_write, done_read, stamps)
    finally:
        # The end of its orders ends it.
        os.close(orders_write)
        os.waitpid(pid, 0)
        os.close(done_read)


def obey(orders: int, done: int, stamps: memoryview) -> None:
    """In the other process, until there are no more orders: never returns."""
    with open(orders) as lines:
        for line in lines:
            rate, flows = map(int, line.split())
            # A new socket: what was told of the one before has been told.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                begun_s = time.monotonic()
                for flow in range(flows):
                    where = destination(flow)
                    # One that was late is followed at once by the next: the rate holds on average.
                    early_s = begun_s + flow / rate - time.monotonic()
                    if early_s > 0:
                        time.sleep(early_s)
                    stamps[flow] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                    out.sendto(b"?", where)
            os.write(done, b".")
    os._exit(0)


def measured(owners: CoreOwners, other: Sender, rate: int, flows: int) -> list[str]:
    in_hand_ms: list[float] = []
    to_hook_ms: list[float] = []
    wall_offset_ns = boot_to_wall_ns()
    lost_before = owners.events_lost()
    poller = select.poll()
    poller.register(owners.fileno(), select.POLLIN)
    poller.register(other.done, select.POLLIN)
    other.send(rate, flows)
    used_s, begun_s, end_s = time.process_time(), time.monotonic(), float("inf")
    while len(in_hand_ms) < flows and time.monotonic() < end_s:
        ready = [descriptor for descriptor, _ in poller.poll(PATIENCE_S * 1000)]
        if owners.fileno() in ready:
            events = owners.read()
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            for event in events:
                if event.process.pid == other.pid and event.remote_port >= FIRST_PORT:
                    sent_ns = other.stamps[flow_of(event.remote_address, event.remote_port)]
                    in_hand_ms.append((now_ns - sent_ns) / 1e6)
                    to_hook_ms.append((event.time_ns - wall_offset_ns - sent_ns) / 1e6)
        if other.done in ready:
            os.read(other.done, 1)
            poller.unregister(other.done)
            end_s = time.monotonic() + PATIENCE_S
    share = (time.process_time() - used_s) / (time.monotonic() - begun_s)
    if end_s == float("inf"):
        os.read(other.done, 1)
    lost = owners.events_lost() - lost_before
    if len(in_hand_ms) + lost < flows:
        sys.exit(f"of {flows} events {len(in_hand_ms)} came and {lost} were counted as lost")
    cuts = statistics.quantiles(in_hand_ms, n=100)
    figures = (cuts[49], cuts[98], max(in_hand_ms), statistics.median(to_hook_ms))
    return [*(f"{each:.3f}" for each in figures), str(flows), str(len(in_hand_ms)), str(lost),
            f"{share:.1%}"]  # fmt: skip


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    titles = ("flows/s", "p50 ms", "p99 ms", "max ms", "to hook", "flows", "events", "lost", "CPU")
    print(*(f"{title:>8}" for title in titles))
    # The other process first: it must not inherit what the owners hold.
    with sender() as other:
        owners = CoreOwners.open()
        try:
            for rate, flows in RUNS:
                row = [f"{rate:,}", *measured(owners, other, rate, flows)]
                print(*(f"{each:>8}" for each in row), flush=True)
        finally:
            owners.close()


if __name__ == "__main__":
    main()
