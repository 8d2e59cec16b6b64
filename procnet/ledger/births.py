"""Since when each socket may have been there, as far as looks and events tell."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from procnet.ledger.claims import shifted


class Births:
    """By inode, the last moment at which the socket was not yet there."""

    def __init__(self, max_sockets: int) -> None:
        self._max_sockets = max_sockets
        self._born_ns: dict[int, int] = {}

    def of(self, inode: int, at_ns: int) -> int:
        """That of a socket; ``at_ns``, if nothing is known of it until now."""
        return self._born_ns.setdefault(inode, at_ns)

    def end(self, inode: int) -> None:
        """The socket is closed: its inode is another's next."""
        self._born_ns.pop(inode, None)

    def look(self, inodes: Iterable[int], previous_look_ns: int) -> None:
        """These are there now, and no others."""
        born_ns = self._born_ns
        self._born_ns = {inode: born_ns.get(inode, previous_look_ns) for inode in inodes}

    def shift(self, step_ns: int) -> None:
        """The wall clock was set by so much."""
        for inode, born_ns in self._born_ns.items():
            self._born_ns[inode] = shifted(born_ns, step_ns)

    def forget(self) -> None:
        """Lets go of what is too much."""
        crowd = max(0, len(self._born_ns) - self._max_sockets)
        for inode in list(islice(self._born_ns, crowd)):
            del self._born_ns[inode]
