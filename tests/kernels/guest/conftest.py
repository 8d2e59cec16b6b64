"""For the inside of a virtual machine: the kernel is that of the guest."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from procnet.bpf.kprobe import KprobeOwners
from tests.kernels.guest.actors import Witness

WORKLOADS = Path(__file__).resolve().parents[2] / "workloads"


@pytest.fixture(scope="session")
def owners() -> Iterator[KprobeOwners]:
    """Compiled once: it takes half a minute here."""
    opened = KprobeOwners.open()
    yield opened
    opened.close()


@pytest.fixture
def witness(owners: KprobeOwners) -> Iterator[Witness]:
    lost = owners.events_lost()
    owners.read()
    yield Witness(owners)
    owners.read()
    assert owners.events_lost() == lost, "events were lost during the test"


@pytest.fixture(scope="session")
def short_lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("workloads") / "short-lived"
    source = WORKLOADS / "short_lived.c"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True)
    return program


@pytest.fixture(scope="session", autouse=True)
def ping_allowed() -> None:
    """Ping sockets are for groups that this names; by default, none."""
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
