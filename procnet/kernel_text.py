"""The kernel's words for what it shows: the same in /proc, in netlink and in BPF programs."""

from __future__ import annotations

# include/net/tcp_states.h, under the names of ss(8). 12 (new_syn_recv) is a handshake to the user,
# as ss has it; 13 is a TCP socket that is bound and does nothing yet.
_STATES = {
    1: "established", 2: "syn_sent", 3: "syn_recv", 4: "fin_wait_1", 5: "fin_wait_2",
    6: "time_wait", 7: "unconnected", 8: "close_wait", 9: "last_ack", 10: "listen", 11: "closing",
    12: "syn_recv", 13: "bound_inactive",
}  # fmt: skip

STATE_NAMES: tuple[str, ...] = tuple(_STATES.get(number, "unknown") for number in range(256))
"""The name of every number that the one byte of a state can hold."""


def decode_text(raw: bytes) -> str:
    """A name or a path, which may be any bytes: ``b"caf\\xff"`` gives ``caf\\xff``."""
    return raw.decode("utf-8", "backslashreplace")


def decode_arguments(raw: bytes) -> tuple[str, ...]:
    """argv, each with a zero behind it. A program that overwrote it (setproctitle) shows as one."""
    stripped = raw.removesuffix(b"\0")
    return tuple(map(decode_text, stripped.split(b"\0"))) if stripped else ()
