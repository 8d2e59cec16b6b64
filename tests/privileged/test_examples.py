"""The examples run as they stand, and are as short as promised."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.privileged.lab import TOP, Namespace
from tests.privileged.namespace import wait_until
from tests.privileged.reporting import assert_conserved
from tests.privileged.test_interrupted import packet_sockets
from tests.privileged.test_report import ready_pair, transfer

EXAMPLES = sorted((TOP / "examples").glob("*.py"))


def start(namespace: Namespace, name: str, *arguments: str) -> subprocess.Popen[str]:
    return namespace.popen(
        [sys.executable, str(TOP / "examples" / name), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    return output


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_has_sixty_lines_at_most_and_is_run_here(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60
    assert f'"{path.name}"' in Path(__file__).read_text()


def test_who(loopback: Namespace) -> None:
    server, client = ready_pair(loopback, loopback, "tcp", pace=0.002)
    example = start(loopback, "who.py", "5")
    wait_until(lambda: packet_sockets(loopback) > 0, "the example to capture")
    transfer((server, client))
    output = finish(example)
    assert f"(pid {client.pid})" in output and f"(pid {server.pid})" in output


def test_json_dump(loopback: Namespace) -> None:
    lines = finish(start(loopback, "json_dump.py", "2")).splitlines()
    reports = [json.loads(line) for line in lines]
    assert [report["schema"] for report in reports] == ["procnet.report/1"] * 2
    for report in reports:
        assert_conserved(report)


def test_connections(loopback: Namespace) -> None:
    example = start(loopback, "connections.py", "5")
    assert example.stdout.readline() == "watching\n"
    server, client = pair = ready_pair(loopback, loopback, "tcp")
    transfer(pair)
    output = finish(example)
    ends = rf"127\.0\.0\.1:{client.port} -> 127\.0\.0\.1:{server.port}"
    wanted = rf"\(pid {client.pid}\) '/.*python.*'  {ends}"
    assert len(re.findall(wanted, output)) == 1
    assert f"127.0.0.1:{server.port} -> " not in output, "an accepted connection is not outbound"


def test_agent(loopback: Namespace) -> None:
    output = finish(start(loopback, "agent.py", "2"))
    assert re.search(r"poll 2: \d+ processes, \d+ bytes, 0 lost", output)
    threads, descriptors = re.findall(r"(\d+) -> (\d+)", output)
    assert threads[0] == threads[1]
    assert descriptors[0] == descriptors[1]
