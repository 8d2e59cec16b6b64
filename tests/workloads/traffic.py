"""A process that moves an exact number of bytes and says so: the first witness of the laboratory.

    traffic.py tcp-server --address 10.203.0.2 --expect 1000003 --bytes 4999
    traffic.py tcp-client --address 10.203.0.2 --port 40001 --bytes 1000003 --expect 4999 --hold

``--bytes`` are sent and ``--expect`` received, each by every connection (tcp) or in all (udp). It
prints one line of JSON when it is ready (a server listens; a client is bound, and connected if it
will be) and one when all of it has moved: ``ok`` is false, and so is the exit status, if it was not
exactly that. With ``--wait`` it sends nothing until it reads a line (``go``); with ``--hold`` its
sockets stay open until it reads another, or the end of its standard input.

A server's ``--port`` may be 0: it is told in the first line. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import sys
import threading
import time

TIMEOUT_S = 20.0
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
LARGEST_DATAGRAM_BYTES = 65535


def main() -> int:
    options = parse(sys.argv[1:])
    role = {
        "tcp-server": tcp_server,
        "tcp-client": tcp_client,
        "udp-server": udp_server,
        "udp-client": udp_client,
    }[options.role]
    return 0 if role(options) else 1


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=["tcp-server", "tcp-client", "udp-server", "udp-client"])
    parser.add_argument("--family", type=int, choices=[4, 6], default=4)
    parser.add_argument("--address", required=True, help="a server's own; a client's peer")
    parser.add_argument("--port", type=int, default=0, help="a server's own; a client's peer")
    parser.add_argument("--local-address", default="", help="of a client")
    parser.add_argument("--local-port", type=int, default=0, help="of a client")
    parser.add_argument("--bytes", type=int, default=0, help="payload bytes to send")
    parser.add_argument("--expect", type=int, default=0, help="payload bytes to receive")
    parser.add_argument("--message-size", type=int, default=1024, help="bytes a send call is given")
    parser.add_argument("--pace", type=float, default=0.0, metavar="S", help="pause after a send")
    parser.add_argument("--connections", type=int, default=1, help="tcp: how many")
    parser.add_argument("--connected", action="store_true", help="udp-client: connect() and send()")
    parser.add_argument("--dual-stack", action="store_true", help="tcp-server: no IPV6_V6ONLY")
    parser.add_argument("--wait", action="store_true", help="send nothing before a line is read")
    parser.add_argument("--hold", action="store_true", help="close nothing before a line is read")
    return parser.parse_args(argv)


# -- the four roles ---------------------------------------------------------------------------


def tcp_server(options: argparse.Namespace) -> bool:
    """Takes --connections connections at once; from each --expect bytes, to each --bytes."""
    listener = socket.socket(FAMILIES[options.family], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if options.family == 6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not options.dual_stack)
    listener.settimeout(TIMEOUT_S)
    listener.bind((options.address, options.port))
    listener.listen(max(128, options.connections))
    say_ready(options, [listener])
    if options.wait:
        sys.stdin.readline()

    connections: list[Connection] = []
    threads = []
    for _ in range(options.connections):
        connection = Connection(listener.accept()[0])
        connections.append(connection)
        threads.append(threading.Thread(target=connection.serve, args=(options,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return say_done(options, connections)


def tcp_client(options: argparse.Namespace) -> bool:
    """Opens --connections connections, then over each sends --bytes and receives --expect."""
    connections = []
    for _ in range(options.connections):
        client = client_socket(options, socket.SOCK_STREAM)
        client.connect((options.address, options.port))
        connections.append(Connection(client))
    say_ready(options, [connection.socket for connection in connections])
    if options.wait:
        sys.stdin.readline()
    for connection in connections:
        connection.send(options)
        connection.receive(options.expect)
    return say_done(options, connections)


def udp_server(options: argparse.Namespace) -> bool:
    """Receives --expect bytes from anyone, then sends --bytes to the one who sent last."""
    server = socket.socket(FAMILIES[options.family], socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    server.settimeout(TIMEOUT_S)
    server.bind((options.address, options.port))
    say_ready(options, [server])
    if options.wait:
        sys.stdin.readline()
    connection = Connection(server)
    connection.receive_datagrams(options.expect)
    connection.send(options, connection.last_sender)
    return say_done(options, [connection])


def udp_client(options: argparse.Namespace) -> bool:
    """Sends --bytes, one datagram a message, then receives --expect."""
    client = client_socket(options, socket.SOCK_DGRAM)
    target = (options.address, options.port)
    if options.connected:
        client.connect(target)
    elif not options.local_address and not options.local_port:
        client.bind(("", 0))  # else the first send would choose the port, after the ready line
    say_ready(options, [client])
    if options.wait:
        sys.stdin.readline()
    connection = Connection(client)
    connection.send(options, None if options.connected else target)
    connection.receive_datagrams(options.expect)
    return say_done(options, [connection])


def client_socket(options: argparse.Namespace, kind: int) -> socket.socket:
    client = socket.socket(FAMILIES[options.family], kind)
    client.settimeout(TIMEOUT_S)
    if options.local_address or options.local_port:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((options.local_address, options.local_port))
    return client


# -- moving and counting ----------------------------------------------------------------------


class Connection:
    """A socket and what moved through it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.sent_payload_bytes = 0
        self.sent_messages = 0
        self.received_payload_bytes = 0
        self.received_messages = 0
        self.last_sender: tuple[object, ...] | None = None
        sock.settimeout(TIMEOUT_S)

    def serve(self, options: argparse.Namespace) -> None:
        self.receive(options.expect)
        self.send(options)

    def send(self, options: argparse.Namespace, target: tuple[object, ...] | None = None) -> None:
        """--bytes in messages of --message-size, the last one shorter."""
        message = memoryview(bytes(options.message_size))
        while self.sent_payload_bytes < options.bytes:
            piece = message[: options.bytes - self.sent_payload_bytes]
            if target is None:
                self.sent_payload_bytes += self.socket.send(piece)
            else:
                self.sent_payload_bytes += self.socket.sendto(piece, target)
            self.sent_messages += 1
            if options.pace:
                time.sleep(options.pace)

    def receive(self, expect: int) -> None:
        """As much of a stream as is due, or until its end."""
        while self.received_payload_bytes < expect:
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                return
            if not data:
                return
            self.received_payload_bytes += len(data)
            self.received_messages += 1

    def receive_datagrams(self, expect: int) -> None:
        """As many datagrams as it takes, or until none has come for a while."""
        while self.received_payload_bytes < expect:
            try:
                data, self.last_sender = self.socket.recvfrom(LARGEST_DATAGRAM_BYTES)
            except TimeoutError:
                return
            self.received_payload_bytes += len(data)
            self.received_messages += 1

    def summary(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "local": name(self.socket),
            "remote": peer_name(self.socket),
            "sent_payload_bytes": self.sent_payload_bytes,
            "sent_messages": self.sent_messages,
            "received_payload_bytes": self.received_payload_bytes,
            "received_messages": self.received_messages,
        }
        if self.socket.type == socket.SOCK_STREAM:
            facts["tcp"] = tcp_info(self.socket)
        return facts


def tcp_info(sock: socket.socket) -> dict[str, int]:
    """What the kernel counted: struct tcp_info of include/uapi/linux/tcp.h, Linux 4.19 on."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    segments_out, segments_in = struct.unpack_from("II", info, 136)
    sent_bytes, retransmitted_bytes = struct.unpack_from("QQ", info, 200)
    return {
        "segments_out": segments_out,
        "segments_in": segments_in,
        "sent_bytes": sent_bytes,
        "retransmitted_bytes": retransmitted_bytes,
    }


# -- what it says -----------------------------------------------------------------------------


def say_ready(options: argparse.Namespace, sockets: list[socket.socket]) -> None:
    say(
        event="ready",
        role=options.role,
        pid=os.getpid(),
        start_time_ticks=start_time_ticks(),
        local=name(sockets[0]),
        remote=peer_name(sockets[0]),
        sockets=[{"local": name(sock), "remote": peer_name(sock)} for sock in sockets],
    )


def say_done(options: argparse.Namespace, connections: list[Connection]) -> bool:
    """Tells what moved, holds what is to be held, and answers whether it was all."""
    ok = all(
        connection.sent_payload_bytes == options.bytes
        and connection.received_payload_bytes == options.expect
        for connection in connections
    )
    say(
        event="done",
        role=options.role,
        pid=os.getpid(),
        ok=ok,
        sent_payload_bytes=sum(each.sent_payload_bytes for each in connections),
        received_payload_bytes=sum(each.received_payload_bytes for each in connections),
        sent_messages=sum(each.sent_messages for each in connections),
        received_messages=sum(each.received_messages for each in connections),
        connections=[connection.summary() for connection in connections],
    )
    if options.hold:
        sys.stdin.readline()
    return ok


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


def name(sock: socket.socket) -> list[object]:
    return list(sock.getsockname()[:2])


def peer_name(sock: socket.socket) -> list[object] | None:
    try:
        return list(sock.getpeername()[:2])
    except OSError:
        return None


def start_time_ticks() -> int:
    """Field 22 of /proc/self/stat; the name in field 2 may contain blanks and brackets."""
    with open("/proc/self/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


if __name__ == "__main__":
    sys.exit(main())
