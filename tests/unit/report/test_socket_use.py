from __future__ import annotations

from procnet.model import TCP, UDP, EventKind, OwnerEvent, Process, ProcessId
from procnet.report.report import Endpoint
from procnet.report.socket_use import socket_use, use_as_json, use_as_text

EVENT = OwnerEvent(
    1_800_000_000_123_456_789, EventKind.SEND, 4026531840, UDP, bytes(4), 4001, b"", 0, 7001,
    ProcessId(1009, 10_000_000), "evil", 0, 0, False,
)  # fmt: skip
EVIL = Process(1009, 10_000_000, "a\x1b[2J", exe="/tmp/\n")


def test_a_peer_that_is_not_known_is_none() -> None:
    use = socket_use(EVENT, EVIL)
    assert (use.local, use.remote) == (Endpoint("0.0.0.0", 4001), None)
    assert use_as_json(use)["remote"] is None


def test_a_line_cannot_steer_a_terminal() -> None:
    line = use_as_text(socket_use(EVENT, EVIL))
    assert line.endswith(r"SEND    udp  0.0.0.0:4001 * a\x1b[2J (pid 1009) /tmp/\x0a")


def test_the_kernel_is_nobody() -> None:
    event = EVENT._replace(
        kernel=True, protocol=TCP, kind=EventKind.CONNECT, remote_address=bytes(15) + b"\1",
        remote_port=443, local_address=bytes(15) + b"\1",
    )  # fmt: skip
    use = socket_use(event, None)
    assert use_as_text(use).endswith("CONNECT tcp  [::1]:4001 [::1]:443 the kernel")
    assert use_as_json(use)["process"] is None
