"""May this process read packets?"""

from __future__ import annotations

import errno
import socket


def ask_for_packets() -> None:
    """Raises OSError, as the kernel says it, if this process may open no packet socket."""
    # Of a type that there is not: the kernel looks at the privilege first (packet_create,
    # net/packet/af_packet.c), and to close one that was made waits for a grace period, 10 ms.
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_SEQPACKET, 0).close()
    except OSError as error:
        if error.errno != errno.ESOCKTNOSUPPORT:
            raise
