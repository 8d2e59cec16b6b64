"""What lies between a tuple on the wire and its socket: translation (NAT), other namespaces."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

from procnet.errors import ProcnetError
from procnet.ledger.elsewhere import Elsewhere
from procnet.model import SocketScan
from procnet.sockets.addresses import NamespaceAddresses
from procnet.sockets.conntrack import Connections

_DUMP_SHARE = 0.05
"""Of the time. The kernel walks its whole table, 10 ms for 40 000 connections."""
# IPv4 asks the interface that a packet comes in by (ip_route_input_slow, net/ipv4/route.c), and
# IPv6 all together (ip6_forward, net/ipv6/ip6_output.c), since 6.17 either (f24987ef6959).
_FORWARDING = (
    "ipv4/ip_forward",
    "ipv4/conf/*/forwarding",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/*/force_forwarding",
)

_log = logging.getLogger("procnet")


def may_be_elsewhere(
    containers: str, sysctl: Path = Path("/proc/sys/net"), *, at_sockets: bool = False
) -> bool:
    """May sockets of other network namespaces be meant, for that choice of the user's?

    ``auto``: if it is sockets that are counted; else, if this namespace forwards packets, as one
    with containers behind it must.
    """
    if containers == "auto":
        return at_sockets or forwards(sysctl)
    return containers == "on"


def forwards(sysctl: Path = Path("/proc/sys/net")) -> bool:
    """Does this network namespace pass packets on, as far as can be read?"""
    for pattern in _FORWARDING:
        with contextlib.suppress(OSError):  # not of a file, but of their directory
            if any(map(_is_on, sysctl.glob(pattern))):
                return True
    return False


def _is_on(switch: Path) -> bool:
    with contextlib.suppress(OSError):
        return switch.read_text().strip() != "0"
    return False


class Translated:
    """Feeds a ledger with what is known of both. For one thread.

    ``everywhere``: sockets of other namespaces may be meant.
    """

    def __init__(self, elsewhere: Elsewhere, *, everywhere: bool) -> None:
        self._elsewhere = elsewhere
        elsewhere.everywhere = everywhere
        self._addresses = NamespaceAddresses()
        self._connections: Connections | None = None
        self._dumped_ns = 0
        self._dump_due_s = 0.0
        try:
            self._connections = Connections()
            self._dump()
        except ProcnetError as error:
            self.close()
            self._connections = None
            elsewhere.is_blind = forwards()
            if elsewhere.is_blind:
                _log.warning("no bytes of translated connections can be named: %s", error)

    def observe(self) -> None:
        """Tells the ledger which translated connections have begun and ended."""
        if self._connections is None:
            return
        begun, ended, since_ns, until_ns, missed = self._connections.read()
        if begun or ended:
            self._elsewhere.translations.hear(begun, ended, since_ns, until_ns)
        if missed:
            self._elsewhere.translations.missed(since_ns)
            self._look_if_due()

    def look(self, scan: SocketScan) -> None:
        """Goes with a look at the sockets."""
        if self._elsewhere.in_use:
            self._elsewhere.namespaces.know(self._addresses.read(scan))
        if self._elsewhere.translations.is_to_be_confirmed:
            self._look_if_due()

    def shift(self, step_ns: int) -> None:
        """The wall clock was set by so much."""
        self._dumped_ns += step_ns
        if self._connections is not None:
            self._connections.shift(step_ns)

    def _look_if_due(self) -> None:
        if time.monotonic() < self._dump_due_s:
            return
        try:
            self._dump()
        except ProcnetError as error:
            _log.warning("%s", error)
            self._elsewhere.translations.missed(self._dumped_ns)

    def _dump(self) -> None:
        assert self._connections is not None
        started_ns, started_s = time.time_ns(), time.monotonic()
        malformed_before = self._connections.malformed_messages
        try:
            translations = self._connections.dump()
            self._elsewhere.translations.look(translations, self._dumped_ns, started_ns)
        finally:
            # One that fails may have taken longest.
            ended_s = time.monotonic()
            self._dump_due_s = ended_s + (ended_s - started_s) * (1 / _DUMP_SHARE - 1)
        malformed = self._connections.malformed_messages - malformed_before
        self._elsewhere.translations.lost += malformed
        self._dumped_ns = started_ns

    def close(self) -> None:
        """Gives everything back. Idempotent."""
        if self._connections is not None:
            self._connections.close()
