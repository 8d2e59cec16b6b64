"""Two processes that take what comes to one socket, without a word of the peer: takers.py SECONDS

Two flows come in all the time, so that the kernel cannot say which one a taker took, and the takers
do it in turns. Meanwhile this process sends datagrams by 301 flows. Three lines: of each taker its
pid and how many it took, and last of this process how many it sent.
"""

from __future__ import annotations

import os
import socket
import sys
import time

FLOWS, DATAGRAM = 301, bytes(101)


def udp(port: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", port))
    return made


def take(shared: socket.socket, telling: int) -> None:
    taken = 1
    while shared.recv(16) != b"end":
        taken += 1
        os.write(telling, b".")
        os.sched_yield()
    # In one piece, however Python buffers: the other one ends at the same time.
    os.write(1, b"%d %d\n" % (os.getpid(), taken))


def feed(target: tuple[str, int], told: int, end_s: float) -> None:
    both = [udp(), udp()]
    while time.monotonic() < end_s:
        for each in both * 2:
            each.sendto(b"x", target)
        left = 4
        while left:
            left -= len(os.read(told, left))
    for each in both:
        each.sendto(b"end", target)


def main() -> None:
    end_s = time.monotonic() + float(sys.argv[1])
    shared, sink = udp(), udp()
    target = shared.getsockname()
    told, telling = os.pipe()
    children = []
    for work in (
        lambda: take(shared, telling),
        lambda: take(shared, telling),
        lambda: feed(target, told, end_s),
    ):
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os._exit(0)
        children.append(pid)
    flows = [udp() for _ in range(FLOWS)]
    sent = 0
    while time.monotonic() < end_s:
        for each in flows:
            each.sendto(DATAGRAM, sink.getsockname())
        sent += FLOWS
    for pid in children:
        os.waitpid(pid, 0)
    print(os.getpid(), sent)


if __name__ == "__main__":
    main()
