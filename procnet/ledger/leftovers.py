"""When a connection may have sent what a process had written that was gone by then."""

from __future__ import annotations

from procnet.ledger.claims import CLOCK_SLACK_NS, FOREVER_NS, TCP_GRACE_NS, shifted
from procnet.ledger.keys import key_of_socket
from procnet.ledger.losses import GOING_ON_NS
from procnet.model import TCP, FlowCount, FlowKey, SocketScan


class Leftovers:
    """By connection, one time: two with less than five seconds between them are one."""

    def __init__(self) -> None:
        self._times: dict[FlowKey, tuple[int, int]] = {}

    def look(self, scan: SocketScan, since_ns: int) -> None:
        """Takes a look at the socket tables; the one before it began at ``since_ns``."""
        if not scan.left_behind and not self._times:
            return
        present = {
            key: socket.inode in scan.left_behind
            for socket in scan.sockets
            if socket.inode and socket.protocol == TCP and (key := key_of_socket(socket))
        }
        for key, (begin_ns, end_ns) in self._times.items():
            if end_ns == FOREVER_NS and not present.get(key):
                # Of a socket that is closed, what is in the queue still leaves.
                grace_ns = 0 if key in present else TCP_GRACE_NS
                self._times[key] = begin_ns, scan.ended_ns + grace_ns
        for key, is_left in present.items():
            if is_left:
                begin_ns, end_ns = self._times.get(key, (since_ns, since_ns))
                if end_ns + GOING_ON_NS < since_ns:
                    begin_ns = since_ns
                self._times[key] = begin_ns, FOREVER_NS

    def hit(self, count: FlowCount) -> bool:
        """Is the run of what was written, or an acknowledgement of it, at such a time?"""
        time = None if count.key is None else self._times.get(count.key)
        if time is None or count.sent is not (count.payload_bytes > 0):
            return False
        begin_ns, end_ns = time
        return begin_ns - CLOCK_SLACK_NS <= count.last_ns and count.first_ns <= end_ns

    def shift(self, step_ns: int) -> None:
        """The wall clock was set by so much."""
        for key, (begin_ns, end_ns) in self._times.items():
            self._times[key] = shifted(begin_ns, step_ns), shifted(end_ns, step_ns)

    def forget(self, now_ns: int) -> None:
        """Lets go of times that no run can be of any more."""
        for key, (_, end_ns) in list(self._times.items()):
            if end_ns + TCP_GRACE_NS < now_ns:
                del self._times[key]
