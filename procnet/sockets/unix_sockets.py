"""Unix sockets by which a descriptor may come into a process from another one (man unix(7)).

The kind of a socket is an attribute of its file (sockfs_xattr_get, net/socket.c), in whatever
network namespace it was made. Which of them are shut, sock_diag tells of our own namespace
(sk_diag_fill, net/unix/diag.c).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set

from procnet.model import ProcessId
from procnet.netlink import attributes, dump
from procnet.sockets.diag import ABSENT, SOCK_DIAG_BY_FAMILY, open_diag
from procnet.sockets.pids import raise_if_ours

_KIND = "system.sockprotoname"
_UNIX = b"UNIX"  # and UNIX-STREAM, since 5.15
_TIMEOUT_S = 1.0

# struct unix_diag_req: family, states, what to tell besides; include/uapi/linux/unix_diag.h.
_REQUEST = struct.Struct("=BxxxI4xI8x")
_STATES = 1 << 1 | 1 << 7  # TCP_ESTABLISHED, TCP_CLOSE: not those that listen
_SHOW_QUEUES = 0x10
# struct unix_diag_msg, of which: type, inode. Its attributes: what waits to be read, shutdown(2).
_MESSAGE = struct.Struct("=xB2xI8x")
_QUEUES, _SHUTDOWN = 4, 6
_RCV_SHUTDOWN = 1  # include/net/sock.h
_NONE: frozenset[int] = frozenset()


class UnixSockets:
    """Which sockets are such. Told of the descriptors of processes (``learn``), and at the end of
    a walk over all of them what there is (``look``).

    ``kind_of`` reads an attribute of a file, as os.getxattr; ``read_shut``: see
    ``read_shut_sockets``. Not thread-safe.
    """

    def __init__(
        self,
        kind_of: Callable[[str, str], bytes] = os.getxattr,
        read_shut: Callable[[], frozenset[int] | None] | None = None,
    ) -> None:
        self._kind_of = kind_of
        self._read_shut = read_shut or read_shut_sockets
        self._is_unix: dict[int, bool] = {}  # by inode
        self._shut: frozenset[int] | None = _NONE
        self._silent = _NONE

    def learn(
        self,
        table: int,
        names: Sequence[str],
        links: Sequence[str],
        inodes: Iterable[int],
        known: Set[int],
    ) -> None:
        """Asks for the kind of those ``inodes`` that are not ``known`` to be something else.

        ``names`` of descriptors in the directory ``table``, and where each of them leads to. Raises
        OSError if this process is short of memory.
        """
        unheard = set(inodes).difference(known, self._is_unix)
        if not unheard:
            return
        name_of = dict(zip(links, names, strict=True))
        for inode in unheard:
            name = name_of.get(f"socket:[{inode}]")
            if name is None:
                continue  # not as the kernel writes it
            try:
                kind = self._kind_of(f"/proc/self/fd/{table}/{name}", _KIND)
            except FileNotFoundError:
                continue  # closed since
            except OSError as error:
                raise_if_ours(error)
                kind = _UNIX  # nobody says that it is not
            self._is_unix[inode] = kind.startswith(_UNIX)

    def look(self, present: Collection[int]) -> None:
        """Forgets what is not ``present`` any more, and asks which are shut."""
        self._is_unix = {i: is_unix for i, is_unix in self._is_unix.items() if i in present}
        before = self._shut
        if before is not None:
            self._shut = self._read_shut()
            # By what was shut only since the look before, something may have come until then.
            self._silent = before & (self._shut or _NONE)

    def reached(self, holders: Mapping[int, frozenset[ProcessId]]) -> frozenset[ProcessId]:
        """Those of the holders, by inode, that have one by which something may have come."""
        return frozenset[ProcessId]().union(
            *{
                holders[inode]
                for inode, is_unix in self._is_unix.items()
                if is_unix and inode not in self._silent and inode in holders
            }
        )


def read_shut_sockets() -> frozenset[int] | None:
    """The inodes of the Unix sockets, of the network namespace that this thread is in, that nothing
    comes out of any more; None if the kernel does not tell. Raises nothing."""
    asked = _REQUEST.pack(socket.AF_UNIX, _STATES, _SHOW_QUEUES)
    try:
        with open_diag() as netlink:
            answers = dump(netlink, SOCK_DIAG_BY_FAMILY, 1, asked, timeout_s=_TIMEOUT_S)
            return frozenset(inode for each in answers if each and (inode := shut_socket(each)))
    except OSError as error:
        return None if error.errno in ABSENT or isinstance(error, TimeoutError) else _NONE


def shut_socket(answer: bytes) -> int:
    """The inode that is in an answer, if nothing comes out of that socket any more; else 0."""
    try:
        kind, inode = _MESSAGE.unpack_from(answer)
        said = dict(attributes(answer, _MESSAGE.size))
        waiting = any(said[_QUEUES][:4])  # struct unix_diag_rqlen
        shut = said[_SHUTDOWN][0] & _RCV_SHUTDOWN
    except (ValueError, LookupError, struct.error):
        return 0
    # A datagram of no bytes may bring a descriptor, too.
    return int(inode) if kind == socket.SOCK_STREAM and shut and not waiting else 0
