"""The commands as a person meets them: what they print, and one clear line when they cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.privileged.lab import TOP, Namespace
from tests.privileged.reporting import assert_conserved
from tests.privileged.test_report import ready_pair, transfer

NOBODY = 65534


def procnet(*arguments: str, namespace: Namespace | None = None, **options: object):
    argv = [sys.executable, "-m", "procnet", *arguments]
    return subprocess.run(
        argv if namespace is None else namespace.argv(argv),
        capture_output=True, text=True, timeout=60, cwd=TOP, **options,
    )  # fmt: skip


def assert_one_clear_line(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines, "nothing was said"
    for word in words:
        assert word in lines[-1]


def test_an_interface_that_does_not_exist() -> None:
    done = procnet("report", "--interface", "nosuch0", "--duration", "1")
    assert_one_clear_line(done, 1, "nosuch0", "there is no such interface", "lo")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["", "lo\0x", "../lo", "\x1b[31m"])
def test_an_interface_name_that_is_none(name: str) -> None:
    if "\0" in name:
        pytest.importorskip("procnet")
        from procnet import Monitor, ProcnetError

        with pytest.raises(ProcnetError, match="lo"):
            Monitor([name]).start()
        return
    done = procnet("report", "--interface", name, "--duration", "1")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("duration", ["-1", "0", "nan", "inf", "abc", "1e99", ""])
def test_a_bad_duration(duration: str) -> None:
    done = procnet("report", f"--duration={duration}", "--interface", "lo")
    assert_one_clear_line(done, 2, "--duration", "positive number of seconds")


def test_without_privilege_it_says_what_is_missing() -> None:
    done = procnet("report", "--interface", "lo", "--duration", "1", user=NOBODY, group=NOBODY)
    assert_one_clear_line(done, 1, "CAP_NET_RAW", "sudo")
    assert done.stderr.count("\n") == 1


def test_without_privilege_doctor_and_sockets_still_answer() -> None:
    doctor = procnet("doctor", user=NOBODY, group=NOBODY)
    assert doctor.returncode == 0, doctor.stderr
    assert "CAP_NET_RAW" in doctor.stdout
    sockets = procnet("sockets", "--format", "json", user=NOBODY, group=NOBODY)
    assert sockets.returncode == 0, sockets.stderr
    assert json.loads(sockets.stdout)["denied_processes"] > 0


@pytest.mark.parametrize(
    ("engine", "owners", "why"),
    [
        ("kernel", "off", "needs core owners; here they come from"),
        ("socket", "auto", "a socket has no interface"),
    ],
)
def test_a_forced_engine_that_cannot_be_had_is_an_error(engine: str, owners: str, why: str) -> None:
    forced = ("--counting", engine, "--kernel", owners)
    done = procnet("report", *forced, "--interface", "lo", "--duration", "1")
    assert_one_clear_line(done, 1, f"--counting {engine}", "cannot be had here", why)


@pytest.mark.parametrize("engine", ["auto", "kernel", "python"])
def test_an_engine_that_can_be_had_is_in_use(engine: str) -> None:
    done = procnet(
        "report", "--counting", engine, "--interface", "lo", "--duration", "0.2", "--format", "json"
    )
    assert done.returncode == 0, done.stderr
    features = json.loads(done.stdout)["features"]
    assert features["counting"] == ("python" if engine == "python" else "kernel")
    (rung,) = [rung for rung in features["rungs"] if rung["name"] == "kernel counting"]
    assert rung["support"] == ("unknown" if engine == "python" else "yes")


def test_sockets_are_counted_if_asked() -> None:
    done = procnet("report", "--counting", "socket", "--duration", "0.2", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "capturing on every socket of every network namespace\n"
    features = json.loads(done.stdout)["features"]
    assert (features["counting"], features["owners"]) == ("socket", "core")
    (rung,) = [rung for rung in features["rungs"] if rung["name"] == "socket counting"]
    assert rung["support"] == "yes"


def test_without_core_owners_there_is_no_counting_at_sockets() -> None:
    done = procnet("report", "--counting", "socket", "--kernel", "off", "--duration", "1")
    assert_one_clear_line(done, 1, "--counting socket", "cannot be had here", "core owners")


def test_a_forced_kprobe_rung_without_kprobes_says_what_is_missing() -> None:
    if Path("/sys/bus/event_source/devices/kprobe").exists():
        pytest.fail("this kernel has kprobes: extend this test to its headers")
    done = procnet("report", "--kernel", "kprobe", "--interface", "lo", "--duration", "1")
    assert_one_clear_line(done, 1, "--kernel kprobe", "no kprobes", "CONFIG_KPROBES")


def test_an_unknown_rung_is_a_usage_error() -> None:
    assert_one_clear_line(procnet("report", "--kernel", "nosuch"), 2, "nosuch")


def test_a_file_that_is_no_capture(tmp_path: Path) -> None:
    path = tmp_path / "text.pcap"
    path.write_text("this is no capture")
    done = procnet("report", "--read", str(path))
    assert_one_clear_line(done, 1, "text.pcap", "not a capture file")
    missing = procnet("report", "--read", str(tmp_path / "missing.pcap"))
    assert_one_clear_line(missing, 1, "missing.pcap", "No such file")


def test_a_truncated_capture_says_so_after_what_it_has(tmp_path: Path) -> None:
    whole = (TOP / "tests" / "data" / "loopback.pcap").read_bytes()
    path = tmp_path / "short.pcap"
    path.write_bytes(whole[:-1])
    done = procnet("report", "--read", str(path), "--format", "json")
    assert_one_clear_line(done, 1, "short.pcap", "cut short")
    report = json.loads(done.stdout)
    assert_conserved(report)
    assert report["totals"]["sent"]["packets"] + report["totals"]["received"]["packets"] > 0


def test_an_unknown_link_type(tmp_path: Path) -> None:
    whole = bytearray((TOP / "tests" / "data" / "loopback.pcap").read_bytes())
    whole[20:24] = (147).to_bytes(4, sys.byteorder)
    path = tmp_path / "odd.pcap"
    path.write_bytes(whole)
    assert_one_clear_line(procnet("report", "--read", str(path)), 1, "link type", "147")


def test_options_that_exclude_each_other() -> None:
    assert_one_clear_line(procnet("report", "--local", "10.0.0.1"), 2, "--local")
    for live in (("--interface", "lo"), ("--kernel", "core"), ("--counting", "python")):
        assert_one_clear_line(procnet("report", "--read", "x", *live), 2, "--read", live[0])
    done = procnet("report", "--read", str(TOP / "tests/data/loopback.pcap"), "--local", "x.y")
    assert_one_clear_line(done, 2, "x.y")


def test_top_prints_frames_and_ends_where_there_is_no_terminal(loopback: Namespace) -> None:
    server, client = pair = ready_pair(loopback, loopback, "tcp", pace=0.002)
    top = loopback.popen(
        [sys.executable, "-m", "procnet", "top", "--interval", "0.5"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert "capturing on lo" in top.stderr.readline()
    transfer(pair)
    output, errors = top.communicate(timeout=60)
    assert (top.returncode, errors) == (0, "")
    assert output.count("PROGRAM") == 10
    assert f"{client.pid}  root" in output
    assert f"{server.pid}  root" in output
    assert "\x1b" not in output


def test_sockets_lists_both_ends_with_their_processes(loopback: Namespace) -> None:
    server, client = ready_pair(loopback, loopback, "tcp")
    listed = json.loads(procnet("sockets", "--format", "json").stdout)
    assert listed["schema"] == "procnet.sockets/1"
    here = [row for row in listed["sockets"] if row["netns"] == loopback.inode]
    found = {
        (row["state"], row["local"]["port"]): [process["pid"] for process in row["processes"]]
        for row in here
    }
    assert found["established", client.port] == [client.pid]
    assert found["listen", server.port] == [server.pid]
    text = procnet("sockets").stdout
    assert any(f"{client.pid}/" in line or f" {client.pid} " in line for line in text.splitlines())


def test_a_process_name_cannot_reach_the_terminal_raw(loopback: Namespace) -> None:
    evil = "\x1b[2J\u202eevil\n"
    code = (
        "import socket,sys;"
        f"open('/proc/self/comm','w').write({evil!r});"
        "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.bind(('127.0.0.1',4001));"
        "print('ready',flush=True);sys.stdin.readline();s.sendto(b'x'*101,('127.0.0.1',4001));"
        "print('sent',flush=True);sys.stdin.readline()"
    )
    process = loopback.popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    report = loopback.popen(
        [sys.executable, "-m", "procnet", "report", "--interface", "lo"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TOP,
    )  # fmt: skip
    assert "capturing" in report.stderr.readline()
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "sent\n"
    report.send_signal(signal.SIGINT)
    output, _ = report.communicate(timeout=60)
    assert str(process.pid) in output
    assert "\x1b" not in output and "\u202e" not in output
    assert "\\x1b" in output
    listed = procnet("sockets").stdout
    assert "\x1b" not in listed and "\\x1b" in listed


def test_an_interface_name_cannot_reach_the_terminal_raw(loopback: Namespace) -> None:
    for name in (b"n\x1b[2J", b"n\xff"):
        loopback.run(["ip", "link", "add", os.fsdecode(name), "type", "veth"])
    options = ("--kernel", "off", "--duration", "1", "--interface")
    done = procnet("report", *options, "n\x1b[2J", namespace=loopback)
    assert_one_clear_line(done, 1, r"n\x1b[2J", "not up")
    done = procnet("report", *options, "nosuch", namespace=loopback)
    assert_one_clear_line(done, 1, r"n\x1b[2J", r"n\udcff")
    loopback.run(["ip", "link", "set", "n\x1b[2J", "up"])
    done = procnet("report", *options, "n\x1b[2J", namespace=loopback)
    assert done.returncode == 0 and done.stderr == "capturing on n\\x1b[2J\n"
    done = procnet("report", *options, os.fsdecode(b"n\xff"), namespace=loopback)
    assert_one_clear_line(done, 1, "not UTF-8", "rename")


def test_version_is_told() -> None:
    import procnet as library

    assert procnet("--version").stdout == f"procnet {library.__version__}\n"
