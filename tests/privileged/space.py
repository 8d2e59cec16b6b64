"""A network namespace whose inside is another thread of this process, and cables to lay in it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tests.privileged.backlog import raised_backlog
from tests.privileged.namespace import LOOPBACK_UP, run

WAIT_S = 20.0
CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Space:
    """A network namespace; ``inside`` runs a function with it as the namespace of its thread."""

    def __init__(self) -> None:
        self.name = f"pncap-{os.getpid()}-{secrets.token_hex(3)}"
        with contextlib.ExitStack() as stack:
            stack.enter_context(raised_backlog())
            ip("netns", "add", self.name)
            stack.callback(ip, "netns", "delete", self.name)
            run(["ip", "netns", "exec", self.name, "sh", "-c", LOOPBACK_UP])
            self._stack = stack.pop_all()

    def ip(self, *words: str) -> None:
        ip("-n", self.name, *words)

    def close(self) -> None:
        self._stack.close()

    def inside(self, work: Callable[[], T]) -> T:
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                with open(f"/run/netns/{self.name}") as file:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(file.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                results.append(work())
            except BaseException as error:  # carried to the caller's thread
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]


def lay_cable(space: Space) -> None:
    space.ip("link", "add", "near", "type", "veth", "peer", "name", "far")
    for name in ("near", "far"):
        # Without these the kernel sends router solicitations and the like whenever it wants.
        space.ip("link", "set", name, "addrgenmode", "none")
        space.ip("link", "set", name, "multicast", "off", "arp", "off", "up")
    space.ip("address", "add", "10.9.0.1/24", "dev", "near")


def wait_for(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


def send_raw(space: Space, device: str, frame: bytes, times: int) -> None:
    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind((device, 0))
            for _ in range(times):
                sender.send(frame)

    space.inside(send)
