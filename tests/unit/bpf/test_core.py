"""The service, with an object that hands over files in the place of BPF maps."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from procnet.bpf import cgroup, core, core_host, layout, libbpf, socket_counts
from procnet.bpf.core import CoreOwners, probe
from procnet.bpf.core_hooks import COUNTING, QUESTIONS, choose
from procnet.bpf.core_host import OBJECT
from procnet.bpf.host import Host
from procnet.bpf.snapshot import OPEN_SOCKET, decode_snapshot
from procnet.bpf.source import source_directory
from procnet.errors import AccessError, LayoutError, LoadError, UnsupportedError
from procnet.model import UDP, EventKind, Evidence, ProcessId, Support
from tests.unit.bpf.fakes import PAGE, FakeRing, fake_host
from tests.unit.bpf.test_events import record

EVERY_NAME = b"".join(
    b"\0" + each + b"\0"
    for each in (
        b"btf_trace_tcp_sendmsg_locked", b"btf_trace_sock_send_length", b"tcp_sendmsg",
        b"btf_trace_tcp_rcv_space_adjust", b"btf_trace_sock_recv_length", b"skb_consume_udp",
        b"security_sock_graft", b"btf_trace_net_dev_queue", b"btf_trace_sched_process_exec",
        b"btf_trace_tcp_destroy_sock",
    )
)  # fmt: skip
CONTRACT = struct.pack("=IIII", layout.LAYOUT, *core.RECORDS_BYTES)
COUNTS_CONTRACT = struct.pack("=IIII", layout.LAYOUT, *socket_counts.RECORDS_BYTES)


class FakeObject:
    """In the place of libbpf's. What it refuses is told by the name of the program."""

    ring: ClassVar[FakeRing]
    processes: ClassVar[FakeRing]
    counter: ClassVar[int]
    noting: ClassVar[int]
    contract: ClassVar[bytes] = CONTRACT
    refuses_to_load: ClassVar[set[str]] = set()
    refuses_to_attach: ClassVar[set[str]] = set()
    lacks_map: ClassVar[set[str]] = set()
    gives_no_info: ClassVar[bool] = False
    made: ClassVar[list[FakeObject]] = []

    def __init__(self, image: bytes) -> None:
        assert image == b"object"
        self.loaded: frozenset[str] = frozenset()
        self.attached: list[str] = []
        self.closed = False
        self.made.append(self)

    def initial_value(self, name: str) -> bytes:
        return {".rodata.contract": self.contract, ".rodata.counts": COUNTS_CONTRACT}[name]

    def choose(self, programs: frozenset[str]) -> None:
        self.loaded = programs

    def set_constant(self, name: str, value: bytes) -> None:
        assert value == {".rodata.netns": bytes(4), ".rodata.counting": core._YES}[name]

    def leave_out(self, map_name: str) -> None:
        assert map_name in socket_counts.MAPS

    def load(self) -> None:
        for name in sorted(self.loaded & self.refuses_to_load):
            raise LoadError(f"refused: Operation not permitted\nprog '{name}': failed to load: -1")

    def attach(self, program: str) -> None:
        if program in self.refuses_to_attach:
            raise LoadError(f"attach {program}: Operation not supported")
        self.attached.append(program)

    def attach_cgroup(self, program: str, descriptor: int) -> None:
        os.fstat(descriptor)
        self.attach(program)

    def run_iterator(self, program: str) -> list[bytes]:
        self.attached.append(program)
        return []

    def program_info(self, name: str) -> libbpf.ProgramInfo:
        assert name in self.loaded
        if self.gives_no_info:
            raise LoadError(f"ask about {name}: Operation not permitted")
        return libbpf.ProgramInfo(recursion_misses=5 if name == "on_sock_graft" else 0)

    def map_descriptor(self, name: str) -> int:
        if name in self.lacks_map:
            raise LoadError(f"the map {name}: Bad file descriptor")
        rings = {"events": self.ring.descriptor, "processes": self.processes.descriptor}
        return {**rings, "lost": self.counter, "noting": self.noting}[name]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = fake_host(tmp_path)
    btf = made.sysfs_root / "kernel/btf"
    btf.mkdir(parents=True)
    (btf / "vmlinux").write_bytes(EVERY_NAME)
    device = os.stat(tmp_path).st_dev
    (made.proc_root / "self/mountinfo").write_text(
        f"41 31 {os.major(device)}:{os.minor(device)} / {tmp_path} rw - cgroup2 cgroup rw\n"
    )
    return made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "owners.bpf.o"
    path.write_bytes(b"object")
    return path


@pytest.fixture
def fake(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeObject]]:
    class Fake(FakeObject):
        ring = FakeRing(host.proc_root)
        processes = FakeRing(host.proc_root)
        counter = os.memfd_create("counter")
        noting = os.memfd_create("noting")
        lacks_map: ClassVar[set[str]] = set()
        refuses_to_load: ClassVar[set[str]] = set()
        refuses_to_attach: ClassVar[set[str]] = set()
        made: ClassVar[list[FakeObject]] = []

    for memory in (Fake.counter, Fake.noting):
        os.truncate(memory, PAGE)
    monkeypatch.setattr(libbpf, "BpfObject", Fake)
    monkeypatch.setattr(libbpf, "check_library", lambda: None)
    monkeypatch.setattr(libbpf, "can_trace_functions", lambda: True)
    yield Fake
    os.close(Fake.ring.descriptor)
    os.close(Fake.processes.descriptor)
    os.close(Fake.counter)
    os.close(Fake.noting)


# -- life -------------------------------------------------------------------------------------


def test_open_read_close(host: Host, image: Path, fake: type[FakeObject]) -> None:
    files = len(os.listdir("/proc/self/fd"))
    owners = CoreOwners.open(host, image)
    assert owners.missing_hooks == ()
    assert owners.feature().support is Support.YES
    assert owners.read() == []
    for inode in (3, 5, 7):
        fake.ring.write(record(inode=inode))
    fake.ring.write(record(kind=99))
    assert [event.inode for event in owners.read()] == [3, 5, 7]
    os.pwrite(fake.counter, (11).to_bytes(8, "little"), 0)
    # And the one of no kind, and those whose hook was passed over.
    assert owners.events_lost() == 11 + 1 + 5
    assert owners.fileno() == fake.ring.descriptor
    owners.close()
    owners.close()
    assert (owners.read(), owners.events_lost(), owners.fileno()) == ([], 17, -1)
    assert [each.closed for each in fake.made] == [True]
    assert len(os.listdir("/proc/self/fd")) == files


def test_who_may_not_ask_about_programs_any_more_is_told_of_the_ring(
    host: Host, image: Path, fake: type[FakeObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = CoreOwners.open(host, image)
    assert owners.events_lost() == 5
    monkeypatch.setattr(fake, "gives_no_info", True)
    os.pwrite(fake.counter, (11).to_bytes(8, "little"), 0)
    assert owners.events_lost() == 11 + 5
    owners.close()
    assert [each.closed for each in fake.made] == [True]


def test_what_infers_from_silence_is_attached_after_the_snapshot(
    host: Host, image: Path, fake: type[FakeObject]
) -> None:
    CoreOwners.open(host, image).close()
    (made,) = fake.made
    at = made.attached.index("on_open_file")
    assert made.attached[at + 1 :] == ["on_sock_graft", "on_release"]
    assert set(made.attached) == made.loaded


@pytest.mark.parametrize("how", ["refuses_to_load", "refuses_to_attach"])
def test_a_refused_program_gives_way_to_the_next_best(
    host: Host, image: Path, fake: type[FakeObject], how: str
) -> None:
    getattr(fake, how).update({"on_skb_consume_udp", "on_tcp_sendmsg_locked"})
    owners = CoreOwners.open(host, image)
    assert {"tcp_sendmsg", "cgroup recvmsg4", "cgroup recvmsg6"} <= set(owners.hooks)
    assert owners.missing_hooks == ()
    assert [each.closed for each in fake.made] == [True, True, False]
    owners.close()


def test_a_question_without_an_answer_is_told(
    host: Host, image: Path, fake: type[FakeObject]
) -> None:
    fake.refuses_to_load = {"on_receive_length_but_udp"}
    owners = CoreOwners.open(host, image)
    assert owners.missing_hooks == ("receive",)
    assert "receive (sock_recv_length: refused" in owners.feature().reason
    owners.close()


@pytest.mark.parametrize(
    "program", ["on_create", "on_tcp_connect", "on_egress", "on_tcp_receive", "on_release"]
)
def test_without_the_indispensable_there_is_no_rung(
    host: Host, image: Path, fake: type[FakeObject], program: str
) -> None:
    fake.refuses_to_load = {program}
    with pytest.raises(LoadError, match=f"(?s)there is no hook for .*prog '{program}'"):
        CoreOwners.open(host, image)
    feature = probe(host, image)
    assert feature.support is Support.NO
    assert f"prog '{program}': failed to load" in feature.reason
    assert all(each.closed for each in fake.made)


def test_an_object_of_another_layout_is_refused(
    host: Host, image: Path, fake: type[FakeObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "contract", struct.pack("=IIII", layout.LAYOUT + 1, 112, 2608, 72))
    with pytest.raises(LayoutError, match="another layout"):
        CoreOwners.open(host, image)
    assert probe(host, image).support is Support.NO
    assert all(each.closed for each in fake.made)


def refuse(*_: object) -> None:
    raise LoadError("no")


@pytest.mark.parametrize("opened", [refuse, lambda *_: SimpleNamespace(close=refuse)])
def test_counting_that_cannot_be_opened_or_read_to_its_end_leaves_nothing(
    host: Host, image: Path, fake: type[FakeObject], monkeypatch: pytest.MonkeyPatch,
    opened: Callable[..., object],
) -> None:  # fmt: skip
    monkeypatch.setattr(core, "SocketCounts", opened)
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LoadError, match="no"):
        CoreOwners.open(host, image, counting=True).close()
    assert [each.closed for each in fake.made] == [True]
    assert len(os.listdir("/proc/self/fd")) == files


def open_without_fentry(host: Host, image: Path, fake: type[FakeObject]) -> CoreOwners:
    """Of which a process has taken a datagram without asking from whom."""
    fake.refuses_to_load = {"on_skb_consume_udp"}
    owners = CoreOwners.open(host, image)
    assert "cgroup_skb ingress" not in owners.hooks
    assert "cgroup_skb ingress on demand" in owners.feature().reason
    fake.ring.write(record(kind=EventKind.RECEIVE, protocol=UDP, remote_address=bytes(16)))
    return owners


def test_what_waits_is_noted_when_somebody_takes_without_asking(
    host: Host, image: Path, fake: type[FakeObject]
) -> None:
    owners = open_without_fentry(host, image, fake)
    assert len(owners.read()) == 1
    assert "cgroup_skb ingress" in owners.hooks
    assert os.pread(fake.noting, 4, 0) == core._YES
    owners.close()


@pytest.mark.parametrize("how", ["refuses_to_attach", "lacks_map"])
def test_a_hook_that_could_not_be_attached_on_demand_is_missing(
    host: Host, image: Path, fake: type[FakeObject], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    owners = open_without_fentry(host, image, fake)
    files = len(os.listdir("/proc/self/fd"))
    setattr(fake, how, {"on_ingress", "noting"})
    assert len(owners.read()) == 1
    assert fake.made[-1].attached[-1] != "on_ingress"
    assert "cgroup_skb ingress" not in owners.hooks
    assert owners.missing_hooks == ("which flow waits",)
    assert "on demand" not in owners.feature().reason
    assert "without which flow waits (" in owners.feature().reason
    assert os.pread(fake.noting, 4, 0) == bytes(4)
    assert len(caplog.messages) == 1
    assert len(os.listdir("/proc/self/fd")) == files
    owners.close()


# -- the choice -------------------------------------------------------------------------------


def chosen(names: bytes, traces_functions: bool) -> set[str]:
    return {hook.name for hook in choose(names, traces_functions, {}).hooks}


def test_hooks_are_chosen_by_what_the_kernel_has() -> None:
    everything = chosen(EVERY_NAME, True)
    assert {"tcp_sendmsg_locked", "skb_consume_udp", "security_sock_graft"} <= everything
    assert not {"tcp_sendmsg", "sock_send_length", "cgroup recvmsg4"} & everything
    here = chosen(EVERY_NAME, False)
    assert {"tcp_sendmsg_locked", "sock_recv_length", "cgroup recvmsg4"} <= here
    assert "cgroup getpeername6" in here
    older = chosen(EVERY_NAME.replace(b"btf_trace_tcp_sendmsg_locked", b"x"), False)
    assert "sock_send_length" in older


def test_a_name_is_a_whole_one() -> None:
    assert "tcp_sendmsg" not in chosen(b"\0tcp_sendmsg_locked\0", True)


def test_datagrams_are_not_told_twice() -> None:
    programs = {hook.program for hook in choose(EVERY_NAME, True, {}).hooks}
    assert "on_receive_length_but_udp" in programs
    assert "on_receive_length" not in programs


def test_where_tcp_sends_are_told_late_the_first_data_is_told_at_egress() -> None:
    older = EVERY_NAME.replace(b"btf_trace_tcp_sendmsg_locked", b"x")
    for names, late in ((older, True), (EVERY_NAME, False)):
        programs = {hook.program for hook in choose(names, False, {}).hooks}
        assert ("on_tcp_send_length" in programs) == late
        assert ("on_egress_and_tcp" in programs) == late
        assert ("on_egress" in programs) != late


def test_what_is_missing_says_why() -> None:
    choice = choose(b"", False, {"on_release": "no such thing"})
    assert choice.missing["close"] == "cgroup sock_release: no such thing"
    assert choice.missing["TCP receive"] == "tcp_rcv_space_adjust: the kernel does not have it"
    assert "tcp_sendmsg: the kernel loads no fentry programs" in choice.missing["TCP send"]


# -- obstacles --------------------------------------------------------------------------------


def refused(host: Host, image: Path, error: type[Exception], *words: str) -> None:
    feature = probe(host, image)
    assert feature.support is Support.NO
    with pytest.raises(error) as raised:
        CoreOwners.open(host, image)
    for word in words:
        assert word in f"{feature.reason}; {feature.remedy}"
        assert word in str(raised.value)


def test_built_without_clang(host: Host, tmp_path: Path) -> None:
    refused(host, tmp_path / "none.o", UnsupportedError, "without clang", "apt install clang")


def test_no_libbpf(host: Host, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "_SONAME", "libnot-there.so.1")
    libbpf.load_library.cache_clear()
    try:
        refused(host, image, UnsupportedError, "libnot-there.so.1", "apt install libbpf1")
    finally:
        libbpf.load_library.cache_clear()


def test_no_btf(host: Host, image: Path, fake: type[FakeObject]) -> None:
    (host.sysfs_root / "kernel/btf/vmlinux").unlink()
    refused(host, image, UnsupportedError, "no BTF", "CONFIG_DEBUG_INFO_BTF")


def test_no_capabilities(host: Host, image: Path, fake: type[FakeObject]) -> None:
    # CAP_BPF and CAP_PERFMON, without CAP_NET_ADMIN
    (host.proc_root / "self/status").write_text("CapEff:\t000000c000000000\n")
    refused(host, image, AccessError, "CAP_NET_ADMIN", "run it as root")


@pytest.mark.parametrize("kind", ["pid", "time", "cgroup"])
def test_another_namespace(host: Host, image: Path, fake: type[FakeObject], kind: str) -> None:
    (host.proc_root / "self/ns" / kind).write_text("")  # of some inode
    refused(host, image, UnsupportedError, f"not in the initial {kind} namespace", "docker run")


def test_no_cgroup(
    host: Host, image: Path, fake: type[FakeObject], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(cgroup, "_mount_detached", fails)
    mountinfo = host.proc_root / "self/mountinfo"
    # A part of the hierarchy is not the whole, and what something else was mounted over is hidden.
    mountinfo.write_text("41 31 0:41 /part /somewhere rw - cgroup2 cgroup rw\n")
    refused(host, image, UnsupportedError, "no cgroup v2 is mounted", "mount -t cgroup2")
    mountinfo.write_text("41 31 251:9999 / /tmp rw - cgroup2 cgroup rw\n")
    refused(host, image, UnsupportedError, "no cgroup v2 is mounted")


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    root = tmp_path / "with space"
    root.mkdir()
    device = os.stat(root).st_dev
    (tmp_path / "self").mkdir()
    escaped = str(root).replace(" ", "\\040")
    (tmp_path / "self/mountinfo").write_text(
        f"41 31 {os.major(device)}:{os.minor(device)} / {escaped} rw shared:5 - cgroup2 none rw\n"
    )
    descriptor = cgroup.open_root(tmp_path)
    assert os.path.samestat(os.fstat(descriptor), root.stat())
    os.close(descriptor)


def test_a_refusal_for_want_of_privilege_is_one_of_access(host: Host) -> None:
    (host.proc_root / "self/status").write_text("CapEff:\t000000c000001000\n")
    error = LoadError("the kernel refused the object: Operation not permitted")
    assert core_host.refusal(error, host).error is AccessError
    assert core_host.refusal(LoadError("invalid argument"), host).error is LoadError


def test_the_program_that_failed_is_found_in_the_log() -> None:
    error = LoadError(
        "the kernel refused the object: Invalid argument\n"
        "prog 'on_egress': BPF program load failed: Invalid argument\n"
        "prog 'on_egress': -- BEGIN PROG LOAD LOG --\n"
        "0: R1=ctx(off=0,imm=0)\n"
        "prog 'on_egress': failed to load: -22"
    )
    assert core_host.failed_program(error) == "on_egress"
    assert core_host.failed_program(LoadError("no more memory")) == ""


def test_permission_is_told_from_the_rest() -> None:
    assert core_host.is_permission(LoadError("load: Operation not permitted"))
    assert not core_host.is_permission(LoadError("load: Invalid argument"))


# -- the snapshot -----------------------------------------------------------------------------


def row(**changes: object) -> bytes:
    values: dict[str, object] = {
        "local": bytes(10) + b"\xff\xff\x7f\0\0\1", "remote": bytes(16), "local_port": 53,
        "remote_port": 0, "protocol": UDP, "inode": 7, "start_ns": 12_345_678_901,
        "born_ns": 0, "pid": 3, "netns": 11, "uid": 5, "family": 4, "state": 7, "type": 2,
        **changes,
    }  # fmt: skip
    return OPEN_SOCKET.pack(*values.values())


def test_a_snapshot_has_each_socket_once_with_all_who_have_it() -> None:
    scan = decode_snapshot(row() + row(pid=4, start_ns=1) + row(inode=8, netns=12), 99, 101, 0)
    assert [socket.inode for socket in scan.sockets] == [7, 8]
    assert scan.sockets[0][:6] == (11, UDP, 4, b"\x7f\0\0\1", 53, bytes(16))
    assert scan.sockets[0][6:] == (0, "unconnected", 7, 5, 0)
    assert scan.holders[7] == {ProcessId(3, 12_340_000_000), ProcessId(4, 0)}
    assert (scan.started_ns, scan.ended_ns) == (99, 101)
    assert scan.evidence is Evidence.KERNEL_SNAPSHOT
    assert [socket.netns for socket in scan.sockets] == [11, 12]


def test_a_snapshot_shows_a_holder_once_however_often_it_has_the_socket_open() -> None:
    again = row(state=1)  # it changed while the descriptors were read
    scan = decode_snapshot(row() + again + row(pid=4) + row(pid=4) + row(), 0, 0, 0)
    assert [socket.state for socket in scan.sockets] == ["unconnected"]
    assert sorted(process.pid for process in scan.holders[7]) == [3, 4]


def test_a_snapshot_says_since_when_there_is_a_socket() -> None:
    rows = row(born_ns=11) + row(pid=4, born_ns=11) + row(inode=8) + row(inode=9, local_port=0)
    assert decode_snapshot(rows, 0, 0, 10**18).births == {7: 10**18 + 11}


def test_a_snapshot_leaves_out_what_has_no_address() -> None:
    rows = row(local_port=0) + row(local_port=0, inode=9, type=3, protocol=253)
    assert [socket.inode for socket in decode_snapshot(rows, 0, 0, 0).sockets] == [9]


# -- the object -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The object, compiled now, as setup.py does it."""
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed: apt install clang libbpf-dev")
    path = tmp_path_factory.mktemp("object") / "owners.bpf.o"
    command = ["clang", "-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-unused-parameter", f"-I/usr/include/{os.uname().machine}-linux-gnu"]
    source = source_directory() / "owners.bpf.c"
    subprocess.run([*command, "-c", str(source), "-o", str(path)], check=True)
    return path


def test_the_object_has_the_programs_and_the_contract(built: Path) -> None:
    opened = libbpf.BpfObject(built.read_bytes())
    try:
        wanted = {hook.program for hook in every_hook()} | {"on_open_file"}
        wanted |= {"on_receive_length_but_udp", "on_egress_and_tcp", socket_counts.ITERATOR}
        assert set(opened._programs) == wanted
        contract = opened.initial_value(".rodata.contract")
        layout.check_contract("it", contract, core.RECORDS_BYTES)
        contract = opened.initial_value(".rodata.counts")
        layout.check_contract("it", contract, socket_counts.RECORDS_BYTES)
    finally:
        opened.close()


def every_hook() -> list[core.Hook]:
    questions = (QUESTIONS | COUNTING).values()
    return [hook for answers in questions for hooks in answers for hook in hooks]


def test_the_package_has_it_where_it_is_looked_for() -> None:
    assert OBJECT.parent == Path(core.__file__).parent
