from __future__ import annotations

import pytest

from procnet.bpf import layout
from procnet.bpf.processes import decode_process
from procnet.errors import LayoutError
from procnet.model import Process

RAW = layout.RawProcess(
    layout=layout.LAYOUT, exe_bytes=13, args_bytes=14, cgroup_bytes=27, start_ns=123_456_789,
    tgid=1009, parent_tgid=7, uid=1000, comm=b"curl\0an old name", exe=b"curl\0bin\0usr\0stale",
    args=b"curl\0-s\0\0host\0stale", cgroup=b"ssh.service\0system.slice\0\0\0stale",
)  # fmt: skip


def process_record(**changes: object) -> bytes:
    return layout.PROCESS.pack(*RAW._replace(**changes))


def test_a_record_becomes_a_process() -> None:
    assert decode_process(process_record(cgroup_bytes=25)) == Process(
        pid=1009, start_time_ns=120_000_000, name="curl", exe="/usr/bin/curl",
        cmdline=("curl", "-s", "", "host"), uid=1000, parent_pid=7,
        cgroup="/system.slice/ssh.service",
    )  # fmt: skip


def test_what_is_not_known_is_empty() -> None:
    process = decode_process(process_record(exe_bytes=0, args_bytes=0, cgroup_bytes=0))
    assert (process.exe, process.cmdline, process.cgroup) == ("", (), "")


def test_the_root_of_the_cgroups_is_not_the_same_as_unknown() -> None:
    assert decode_process(process_record(cgroup=b"\0", cgroup_bytes=1)).cgroup == "/"


def test_names_may_be_any_bytes() -> None:
    exe = b"\xff\x1b[0m\0tmp\0"
    process = decode_process(process_record(exe=exe, exe_bytes=len(exe)))
    assert process.exe == "/tmp/\\xff\x1b[0m"


def test_arguments_that_were_cut_are_kept_as_they_are() -> None:
    process = decode_process(process_record(args=b"a\0bc", args_bytes=4))
    assert process.cmdline == ("a", "bc")


@pytest.mark.parametrize(
    "wrong", [process_record()[:-1], b"", process_record(layout=layout.LAYOUT + 1)]
)
def test_another_layout_is_refused(wrong: bytes) -> None:
    with pytest.raises(LayoutError, match="reinstall procnet"):
        decode_process(wrong)
