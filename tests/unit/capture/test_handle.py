"""Files, names and the traps of libpcap, as far as they show without privilege."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from procnet.capture import handle, privilege
from procnet.capture.handle import FileHandle, LiveHandle
from procnet.errors import AccessError, CaptureError, UnsupportedError, UsageError
from procnet.model import Support
from procnet.testing.frames import tcp_frame, write_pcap

FRAME = tcp_frame("10.0.0.1", 5, "10.0.0.2", 6, b"x" * 11)
PACKETS = 23


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "capture.pcap"
    assert write_pcap(path, [FRAME] * PACKETS) == PACKETS
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_all(reader: FileHandle, max_packets: int = 7) -> list[tuple[float, bytes]]:
    found: list[tuple[float, bytes]] = []
    while reader.read(lambda *packet: found.append(packet), max_packets):
        pass
    return found


def test_a_file_is_read_in_batches_to_its_end(capture: Path) -> None:
    with FileHandle(capture) as reader:
        assert reader.link_type == 1
        sizes = []
        while size := reader.read(lambda timestamp, frame: None, 7):
            sizes.append(size)
        assert sizes == [7, 7, 7, 2]
        assert reader.read(lambda timestamp, frame: None) == 0


def test_stamps_and_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "stamped"
    write_pcap(path, [(1_700_000_000.25, FRAME), (1_700_000_001.5, FRAME[:29])])
    with FileHandle(path) as reader:
        assert read_all(reader) == [(1_700_000_000.25, FRAME), (1_700_000_001.5, FRAME[:29])]


def test_a_pcapng_file_is_read(tmp_path: Path) -> None:
    padded = FRAME + bytes(-len(FRAME) % 4)
    blocks = [
        (0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)),
        (1, struct.pack("<HHI", 1, 0, 0)),
        (6, struct.pack("<IIIII", 0, 0, 1_000_000, len(FRAME), len(FRAME)) + padded),
    ]
    path = tmp_path / "capture.pcapng"
    path.write_bytes(
        b"".join(
            struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)
            for kind, body in blocks
        )
    )
    with FileHandle(path) as reader:
        assert read_all(reader) == [(1.0, FRAME)]


@pytest.mark.parametrize("name", ["-", "lo", "any", "usbmon1", "caf\udce9", "line\nfeed"])
def test_a_name_that_means_something_to_libpcap_means_the_file(here: Path, name: str) -> None:
    write_pcap(name, [FRAME] * PACKETS)
    with FileHandle(name) as reader:
        assert len(read_all(reader)) == PACKETS


def test_what_is_no_capture_is_refused_in_one_line(here: Path) -> None:
    Path("empty").touch()
    Path("text").write_text("this is not the file that you are looking for\n")
    Path("short").write_bytes(struct.pack("<IHH", 0xA1B2C3D4, 2, 4))
    os.mkfifo("pipe")
    expected = {
        "missing": "No such file or directory", "empty": "it is empty", ".": "it is a directory",
        "text": "not a capture file", "short": "its header is damaged",
        "pipe": "not a regular file", "/dev/null": "not a regular file",
    }  # fmt: skip
    for name, reason in expected.items():
        with pytest.raises(CaptureError, match=reason) as caught:
            FileHandle(name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_cannot_be_a_path_is_a_usage_error(path: str) -> None:
    with pytest.raises(UsageError):
        FileHandle(path)


def test_an_unknown_link_type_is_refused_before_any_packet(tmp_path: Path) -> None:
    path = tmp_path / "wifi"
    write_pcap(path, [FRAME], link_type=127)
    with pytest.raises(CaptureError, match="link type is 127"):
        FileHandle(path)


@pytest.mark.parametrize("cut_bytes", [1, 16 + len(FRAME) - 1])
def test_a_file_that_is_cut_short_says_after_how_many_packets(
    capture: Path, cut_bytes: int
) -> None:
    capture.write_bytes(capture.read_bytes()[:-cut_bytes])
    found: list[bytes] = []
    with FileHandle(capture) as reader:
        with pytest.raises(CaptureError, match=rf"cut short after {PACKETS - 1} packets"):
            while reader.read(lambda timestamp, frame: found.append(frame), 7):
                pass
        assert found == [FRAME] * (PACKETS - 1)
        assert reader.read(lambda timestamp, frame: found.append(frame)) == 0


def test_a_damaged_file_says_after_how_many_packets(capture: Path) -> None:
    with capture.open("ab") as file:
        file.write(b"\0" * 8 + b"\xff" * 8 + bytes(101))
    with (
        FileHandle(capture) as reader,
        pytest.raises(CaptureError, match=f"damaged after {PACKETS} packets"),
    ):
        read_all(reader)


def test_after_close_nothing_is_touched(capture: Path) -> None:
    reader = FileHandle(capture)
    reader.close()
    reader.close()
    with pytest.raises(CaptureError, match="it is closed"):
        reader.read(lambda timestamp, frame: None)


def test_a_callback_may_close(capture: Path) -> None:
    reader = FileHandle(capture)
    assert reader.read(lambda timestamp, frame: reader.close(), 7) == 7
    with pytest.raises(CaptureError, match="it is closed"):
        reader.read(lambda timestamp, frame: None)


def test_an_exception_in_a_callback_comes_out(capture: Path) -> None:
    def fail(timestamp: float, frame: bytes) -> None:
        raise LookupError("lost")

    with FileHandle(capture) as reader, pytest.raises(LookupError, match="lost"):
        reader.read(fail)


def test_reading_within_a_read_is_refused(capture: Path) -> None:
    with FileHandle(capture) as reader, pytest.raises(UsageError, match="under way"):
        reader.read(lambda timestamp, frame: reader.read(lambda *_: None))


@pytest.mark.parametrize("max_packets", [0, -1])
def test_a_batch_without_end_is_refused(capture: Path, max_packets: int) -> None:
    with FileHandle(capture) as reader, pytest.raises(UsageError):
        reader.read(lambda timestamp, frame: None, max_packets)


def test_ctrl_c_still_belongs_to_python(capture: Path) -> None:
    """libpcap's wrapper would replace the handler behind Python's back: ask the kernel."""
    code = (
        "import signal, sys\n"
        "from procnet.capture.handle import FileHandle\n"
        "def caught():\n"
        "    return [l for l in open('/proc/self/status') if l.startswith('SigCgt')]\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with FileHandle(sys.argv[1]) as reader:\n"
        "    before = caught()\n"
        "    while reader.read(lambda timestamp, frame: None): pass\n"
        "    assert caught() == before\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(capture)],
        capture_output=True, text=True, cwd=Path(__file__).resolve().parents[3],
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


@pytest.mark.parametrize("name", ["", "lo\0x", None, 7])
def test_what_cannot_be_an_interface_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="no interface name"):
        LiveHandle(name)


def without_privilege(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*args: object) -> socket.socket:
        raise error

    monkeypatch.setattr(privilege.socket, "socket", refuse)


def test_without_the_privilege_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without_privilege(monkeypatch, PermissionError(1, "Operation not permitted"))
    with pytest.raises(AccessError, match=r"CAP_NET_RAW.*sudo"):
        LiveHandle("lo")
    found = handle.probe()
    assert found.support is Support.NO
    assert "CAP_NET_RAW" in found.reason
    assert "setcap cap_net_raw" in found.remedy


def test_a_probe_tells_no_from_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    without_privilege(monkeypatch, OSError(97, "Address family not supported by protocol"))
    assert handle.probe().support is Support.NO
    without_privilege(monkeypatch, OSError(24, "Too many open files"))
    assert handle.probe().support is Support.UNKNOWN


def test_a_missing_module_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capture: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pcap", None)
    with pytest.raises(UnsupportedError, match="pip install 'pypcap"):
        FileHandle(capture)
    found = handle.probe()
    assert found.support is Support.NO
    assert "pip install" in found.remedy


def test_importing_the_room_loads_neither_pcap_nor_dpkt() -> None:
    code = (
        "import sys, procnet.capture.handle, procnet.capture.counter\n"
        "assert not {'pcap', 'dpkt'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[3]
    )
