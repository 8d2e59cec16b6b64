"""What the kernel copies into a capture's ring: a classic BPF program on the socket.

libpcap cuts frames to the snapshot length when they are read; its ring (TPACKET_V3) holds them
whole, up to 64 KiB each where the kernel joins segments, and holds both copies of a loopback
packet, of which it delivers one. A ring that must hold only what is delivered may be small.
"""

from __future__ import annotations

import array
import os
import socket
import struct

_SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h
_PACKET_TYPE = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE, include/uapi/linux/filter.h
_PACKET_OUTGOING = 4  # include/uapi/linux/if_packet.h
_LOAD, _SKIP_UNLESS_EQUAL, _RETURN = 0x28, 0x15, 0x06

_INSTRUCTION = struct.Struct("HBBI")  # struct sock_filter: code, jump if true, if false, value
_PROGRAM = struct.Struct("HP")  # struct sock_fprog: how many, where


def keep_headers(descriptor: int, bytes_kept: int, *, loopback: bool) -> None:
    """The first ``bytes_kept`` bytes of each packet; of a loopback packet, the copy that comes in.

    Takes the place of any other filter of that packet socket. Raises OSError.
    """
    program = [(_RETURN, 0, 0, bytes_kept)]
    if loopback:
        program = [
            (_LOAD, 0, 0, _PACKET_TYPE),
            (_SKIP_UNLESS_EQUAL, 0, 1, _PACKET_OUTGOING),
            (_RETURN, 0, 0, 0),
            *program,
        ]
    code = array.array("B", b"".join(_INSTRUCTION.pack(*each) for each in program))
    address, _ = code.buffer_info()
    with socket.socket(fileno=os.dup(descriptor)) as same:
        same.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(program), address))
