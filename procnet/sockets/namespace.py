"""What is done in another network namespace: by a thread that goes there, and ends there."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_T = TypeVar("_T")


def in_namespace(path: str, work: Callable[[], _T]) -> _T:
    """What ``work`` returns in the network namespace of that file, such as /proc/PID/ns/net.

    A socket stays where it was made. Raises OSError: what ``work`` raises, or why nobody can go
    there, setns(2).
    """
    from ctypes import CDLL, get_errno  # importing procnet stays cheap

    done: list[_T] = []
    failed: list[OSError] = []

    def go() -> None:
        try:
            with open(path, "rb") as namespace:
                if CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(get_errno(), os.strerror(get_errno()))
            done.append(work())
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=go, name="procnet namespace", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # the limit of threads
        raise OSError(errno.EAGAIN, str(error)) from error
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
