"""One suite of questions, one family of hooks to answer them.

PROCNET_OWNERS
    core: CO-RE, with the hooks that this kernel has (when unset).
    core-without-fentry: the same, as if the kernel loaded no fentry programs.
    kprobe: kprobes, compiled by BCC.

test_core.py and test_kprobe.py are about one family and run with that one only.
"""

from __future__ import annotations

import functools
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from procnet.bpf import libbpf
from procnet.bpf.core import CoreOwners
from procnet.bpf.kprobe import KprobeOwners
from tests.privileged.lab import Namespace
from tests.privileged.owners.actors import Witness, entered, kprobes, open_files
from tests.privileged.owners.gaps import Owners

FAMILY = os.environ.get("PROCNET_OWNERS", "core")
# Of all namespaces: what another suite of tests floods on the same machine, fits in, too.
open_core = functools.partial(CoreOwners.open, ring_bytes=32 << 20)


def opened_in_a_thread() -> KprobeOwners:
    """They are read by another one; compiling takes too long to show it apart."""
    opened: list[KprobeOwners] = []
    thread = threading.Thread(target=lambda: opened.append(KprobeOwners.open()))
    thread.start()
    thread.join()
    return opened[0]


OPEN = {
    "core": open_core,
    "core-without-fentry": open_core,
    "kprobe": opened_in_a_thread,
}[FAMILY]
collect_ignore = ["test_core.py" if FAMILY == "kprobe" else "test_kprobe.py"]


@pytest.fixture(scope="module", autouse=True)
def without_functions() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if FAMILY == "core-without-fentry":
            patch.setattr(libbpf, "can_trace_functions", lambda: False)
        yield


# BCC compiles for a minute in an emulated machine; nobody else is there to be in the way of.
@pytest.fixture(scope="session" if FAMILY == "kprobe" else "module")
def owners() -> Iterator[Owners]:
    files, threads = open_files(), threading.active_count()
    opened = OPEN()
    its_files = open_files() - files
    take_of_somebody(opened)
    yield opened
    lost = opened.events_lost()
    opened.close()
    opened.close()
    assert (opened.read(), opened.events_lost()) == ([], lost)
    assert its_files and its_files.isdisjoint(open_files())
    assert threading.active_count() == threads
    if FAMILY == "kprobe":
        assert opened.fileno() == -1
        assert kprobes() == []


def take_of_somebody(owners: Owners) -> None:
    """There may be a hook that is attached when the first process does that."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.sendto(b"x", sock.getsockname())
        sock.recv(1)
    owners.read()


@pytest.fixture(scope="module")
def inside() -> Iterator[Namespace]:
    """This very process is in a network namespace of the module's own: what it forks, too."""
    with Namespace("owners") as made, entered(made.path):
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
        yield made


@pytest.fixture
def witness(owners: Owners, inside: Namespace) -> Iterator[Witness]:
    lost = owners.events_lost()
    owners.read()
    owners.read_processes()
    yield Witness(owners)
    owners.read()
    assert owners.events_lost() == lost, "events were lost during the test"
