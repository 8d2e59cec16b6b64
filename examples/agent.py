"""procnet inside a program that has a life of its own: start, poll, stop, and nothing is left.

$ sudo .venv/bin/python examples/agent.py 3
poll 1: 2 processes, 48211 bytes, 0 lost
…
stopped: threads 1 -> 1, file descriptors 3 -> 3
"""

import logging
import os
import sys
import threading
import time

import procnet


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class Agent:
    """Owns a monitor and asks it when it suits the agent, not the monitor."""

    def __init__(self) -> None:
        self._monitor = procnet.Monitor()

    def start(self) -> None:
        try:
            self._monitor.start()
        except procnet.ProcnetError as error:
            sys.exit(f"agent: no network figures: {error}")

    def poll(self) -> str:
        report = self._monitor.report()
        lost = report.loss.capture_dropped_packets + report.loss.events_lost
        return f"{len(report.processes)} processes, {report.totals.wire_bytes} bytes, {lost} lost"

    def stop(self) -> None:
        self._monitor.stop()


logging.basicConfig()
polls = int(sys.argv[1]) if len(sys.argv) > 1 else 10
threads, fds = threading.active_count(), open_fds()
agent = Agent()
agent.start()
for number in range(1, polls + 1):
    time.sleep(1)
    print(f"poll {number}: {agent.poll()}", flush=True)
agent.stop()
print(
    f"stopped: threads {threads} -> {threading.active_count()},"
    f" file descriptors {fds} -> {open_fds()}"
)
