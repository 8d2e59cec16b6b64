"""What a port refuses until a process that was there all the time takes it.

Says who that was (JSON), once everything has moved, and ends with its standard input.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time

HERE = "127.0.0.1"
UDP_PORT, TCP_PORT = 5003, 5009
ASKER_PORT, FIRST_CALLER_PORT = 5101, 5201
REFUSED_SIZES, TAKEN_SIZES = (101, 103, 107), (211, 223, 227, 229)
TAKEN_BY_TCP_BYTES = 307
_TIMEOUT_S = 60.0


def serve(goes: int, told: int) -> None:
    os.read(goes, 1)
    receiver, listener = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
    for sock in (receiver, listener):
        sock.settimeout(_TIMEOUT_S)
    receiver.bind((HERE, UDP_PORT))
    listener.bind((HERE, TCP_PORT))
    listener.listen()
    os.write(told, b"x")
    for size in TAKEN_SIZES:
        assert len(receiver.recvfrom(2000)[0]) == size
        os.write(told, b"x")
    connection, _ = listener.accept()
    assert len(connection.recv(2000)) == TAKEN_BY_TCP_BYTES
    os.write(told, b"x")
    os.read(goes, 1)


def call(port: int) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(_TIMEOUT_S)
    sock.bind((HERE, port))
    return sock


def main() -> None:
    reads, goes = os.pipe()
    taken, told = os.pipe()
    server = os.fork()
    if server == 0:
        os.close(goes)
        serve(reads, told)
        os._exit(0)
    os.close(told)  # if the server dies, nobody waits for its word
    asker = socket.socket(type=socket.SOCK_DGRAM)
    asker.bind((HERE, ASKER_PORT))
    for number, size in enumerate(REFUSED_SIZES):
        asker.sendto(bytes(size), (HERE, UDP_PORT))
        with call(FIRST_CALLER_PORT + number) as sock:
            assert sock.connect_ex((HERE, TCP_PORT)) == errno.ECONNREFUSED
    time.sleep(0.01)  # a hundred times the slack of the clocks, within which all may be one moment
    os.write(goes, b"x")
    assert os.read(taken, 1)
    for size in TAKEN_SIZES:
        asker.sendto(bytes(size), (HERE, UDP_PORT))
        assert os.read(taken, 1)
    with call(FIRST_CALLER_PORT + len(REFUSED_SIZES)) as sock:
        sock.connect((HERE, TCP_PORT))
        sock.sendall(bytes(TAKEN_BY_TCP_BYTES))
        assert os.read(taken, 1)
        print(json.dumps({"server": server, "asker": os.getpid()}), flush=True)
        sys.stdin.read()
    os.close(goes)
    os.waitpid(server, 0)


if __name__ == "__main__":
    main()
