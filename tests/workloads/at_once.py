"""Two processes send on one UDP socket at the same moment, by two processors, if there are two.

Prints how many bytes each datagram of a process has, as JSON: [[pid, bytes], [pid, bytes]].
"""

from __future__ import annotations

import json
import os
import socket
import sys

SIZES = (101, 103)


def main() -> None:
    number = int(sys.argv[1])
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sink.bind(("127.0.0.1", 0))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(sink.getsockname())
    reads, writes = zip(os.pipe(), os.pipe(), strict=True)
    pids: list[int] = []
    for mine, size in enumerate(SIZES):
        pids.append(os.fork())
        if not pids[-1]:
            send(sock, size, number, reads[mine], writes[1 - mine], mine)
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert not status
    print(json.dumps(list(zip(pids, SIZES, strict=True))))


def send(sock: socket.socket, size: int, number: int, mine: int, theirs: int, place: int) -> None:
    status = 1
    try:
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[place % len(processors)]})
        data = bytes(size)
        # Whoever says go has only to hear it: both begin within a system call.
        os.write(theirs, b"x")
        os.read(mine, 1)
        for _ in range(number):
            sock.send(data)
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
