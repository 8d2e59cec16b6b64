"""Actors that pause before some of their calls, and after they were forked or have accepted.

That is what a busy machine does to them now and then: somebody looks at the sockets in between.
"""

from __future__ import annotations

import os
import random
import socket
import time

_ODDS = 0.25
_PAUSES_S = (0.1, 0.3, 0.7)
_MOST = 4
"""Pauses of a process: what nobody has read for five seconds is booked without its reader."""
_CALLS = """
    bind close connect detach listen recv recvfrom recvmsg recv_into send sendall sendfile sendmsg
    sendto setsockopt shutdown
"""
_plain = socket.socket
_at_random = random.Random()
_left = 0


class _Paused(socket.socket):
    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)
        _pause()

    def accept(self) -> object:
        taken = super().accept()
        _pause()
        return taken


def _paused(name: str) -> object:
    def call(self: object, *arguments: object, **named: object) -> object:
        _pause()
        return getattr(_plain, name)(self, *arguments, **named)

    return call


for _name in _CALLS.split():
    setattr(_Paused, _name, _paused(_name))


def _pause() -> None:
    global _left
    if _left and _at_random.random() < _ODDS:
        _left -= 1
        time.sleep(_at_random.choice(_PAUSES_S))


def begin(seed: int) -> None:
    """From now on, in this process and all that it forks; another seed, other pauses."""

    def restart() -> None:
        global _left
        _at_random.seed(seed * 7919 + os.getpid())
        _left = _MOST
        _pause()

    os.register_at_fork(after_in_child=restart)
    restart()
    socket.socket = _Paused
