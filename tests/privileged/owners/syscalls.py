"""System calls that Python does not have."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)

# -- several messages at once -----------------------------------------------------------------


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _MMsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint), ("iov", ctypes.c_void_p),
        ("iov_length", ctypes.c_size_t), ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t), ("flags", ctypes.c_int), ("pad", ctypes.c_int),
        ("length", ctypes.c_uint),
    )  # fmt: skip


def sendmmsg(sock: socket.socket, ports: list[int]) -> int:
    """A byte for each port of 127.0.0.1; how many were sent."""
    address = socket.inet_aton("127.0.0.1")
    names = [struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), address) for port in ports]
    return _mmsg(_LIBC.sendmmsg, sock, names)


def recvmmsg(sock: socket.socket, number: int, *, address: bool) -> int:
    """Waits for ``number`` messages, whose addresses are asked for or not; how many came."""
    return _mmsg(_LIBC.recvmmsg, sock, [bytes(16) if address else b""] * number, None)


def _mmsg(call: object, sock: socket.socket, names: list[bytes], *more: object) -> int:
    data = ctypes.create_string_buffer(b"x", 100)
    vector = _IoVec(ctypes.addressof(data), 1)
    pointer = ctypes.addressof(vector)
    buffers = [ctypes.create_string_buffer(name, 16) for name in names]
    messages = (_MMsgHdr * len(names))(
        *(
            _MMsgHdr(ctypes.addressof(each) if name else None, len(name), pointer, 1)
            for name, each in zip(names, buffers, strict=True)
        )
    )
    return int(call(sock.fileno(), messages, len(names), 0, *more))  # type: ignore[operator]


def disconnect(sock: socket.socket) -> None:
    """connect() with AF_UNSPEC: what is in the queue is thrown away."""
    assert not _LIBC.connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16)


# -- io_uring ---------------------------------------------------------------------------------

_SETUP, _ENTER = 425, 426
_GETEVENTS, _WAKE = 1, 2
_SQES_AT = 0x10000000
SQPOLL = 2
"""Flag of the ring: a thread of the kernel's polls for what is to be done."""
ASYNC = 1 << 4
"""Flag of an entry: a worker does it, not the caller."""
SEND, RECEIVE = 26, 27


def uring_refusal() -> str:
    """Why this kernel has no io_uring for us; empty if it has."""
    try:
        os.close(_setup(0)[0])
    except OSError as error:
        return f"io_uring_setup: {error.strerror}"
    return ""


def _setup(flags: int) -> tuple[int, tuple[int, ...]]:
    # struct io_uring_params: 10 words, then the offsets of both rings, 10 words each.
    params = ctypes.create_string_buffer(struct.pack("=30I", 0, 0, flags, *[0] * 27), 120)
    descriptor = _LIBC.syscall(_SETUP, 1, params)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor, struct.unpack("=30I", params.raw)


def uring(sock: socket.socket, operation: int, data: bytearray, *, ring: int, entry: int) -> int:
    """One operation of a ring of its own with flags ``ring``; its result."""
    descriptor, words = _setup(ring)
    tail, array, cqes = words[11], words[16], words[25]
    with (
        mmap.mmap(descriptor, array + 4 + 4096) as rings,
        mmap.mmap(descriptor, 64, offset=_SQES_AT) as entries,
    ):
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        entries[:] = struct.pack(
            "=BBHiQQII32x", operation, entry, 0, sock.fileno(), 0, address, len(data), 0
        )
        struct.pack_into("=I", rings, array, 0)
        struct.pack_into("=I", rings, tail, 1)
        enter = _GETEVENTS | (_WAKE if ring & SQPOLL else 0)
        done = _LIBC.syscall(_ENTER, descriptor, 1, 1, enter, None, 0)
        assert done == 1, os.strerror(ctypes.get_errno())
        result = int(struct.unpack_from("=i", rings, cqes + 8)[0])
    os.close(descriptor)
    return result
