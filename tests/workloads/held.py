"""Scenes around the monitor: sockets from before it, and such as wait until it has reported."""

from __future__ import annotations

import socket
import sys

from tests.workloads.scene import (
    V4,
    Child,
    Note,
    Truth,
    connected,
    datagrams,
    listener,
    moved,
    receive,
    send_each,
    take_blindly,
    take_each,
    tcp_moved,
    together,
)


def when_told() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def older_udp() -> Truth:
    """Sockets from before: connected, not connected, and one that only receives."""
    truth: Truth = []
    waiting = []
    there = Note()
    for sizes, connect, take in (
        ((227, 229), True, take_blindly(2)),
        ((233, 239), False, take_each(2)),
        ((241, 251), False, take_blindly(2)),
    ):
        go = Note()

        def send(sock: socket.socket, target: object, go: Note = go, sizes: object = sizes) -> int:
            there.give()
            go.take()
            return send_each(*sizes)(sock, target)

        waiting.append((go, Child(lambda s=send, t=take, c=connect: datagrams(s, t, connect=c))))
    for _ in waiting:
        there.take()
    when_told()
    for go, child in waiting:
        go.give()
        truth += child.truth()
    return truth


def older_tcp() -> Truth:
    """Connections in mid-flow: of what went before the monitor began, nobody is told."""
    there = Note()
    goes, children = [], []
    for before, after in (((2003, 0), (50_023, 30_011)), ((0, 3001), (1_009, 70_003))):
        where, server_goes, client_goes = Note(), Note(), Note()

        def serve(where=where, go=server_goes, before=before, after=after) -> Truth:
            with listener() as listening:
                where.give(listening.getsockname())
                with listening.accept()[0] as sock:
                    return play(sock, there, go, before[::-1], after[::-1])

        def use(where=where, go=client_goes, before=before, after=after) -> Truth:
            with connected(where.take()) as sock:
                return play(sock, there, go, before, after)

        goes += [server_goes, client_goes]
        children += [Child(serve), Child(use)]
    for _ in goes:
        there.take()
    when_told()
    for go in goes:
        go.give()
    return together(*children)


def play(
    sock: socket.socket, there: Note, go: Note, before: tuple[int, int], after: tuple[int, int]
) -> Truth:
    """``before`` and ``after``: sent and received bytes."""
    sock.sendall(bytes(before[0]))
    assert receive(sock, before[1]) == before[1]
    there.give()
    go.take()
    sock.sendall(bytes(after[0]))
    return [tcp_moved(sock, after[0], receive(sock, after[1]))]


def never_accepted() -> Truth:
    """Data for a listener that has not accepted it when the report is made."""
    where, sent, end = Note(), Note(), Note()

    def client() -> Truth:
        with connected(where.take()) as sock:
            sock.sendall(bytes(1019))
            sent.give(sock.getsockname())
            end.take()
            return [tcp_moved(sock, 1019)]

    clients = Child(client)
    with listener() as listening:
        where.give(listening.getsockname())
        peer = sent.take()
        when_told()
        end.give()
        truth = clients.truth()
        return [*truth, moved("tcp", listening.getsockname(), peer, received=1019)]


def bystander() -> Truth:
    """Moves nothing, and has sockets open that get copies of what others do."""
    kinds = [(socket.AF_INET, protocol) for protocol in (1, 2, 6, 17)]
    held = [socket.socket(family, socket.SOCK_RAW, protocol) for family, protocol in kinds]
    held.append(socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58))
    held.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    when_told()
    return [moved("none", (V4, 0), (V4, 0))]


BEFORE = (bystander, older_udp, older_tcp)
"""They are there when the monitor starts. The bystander stays until it has reported."""
BEYOND = (never_accepted,)
"""They begin under the monitor, and wait until it has reported."""
