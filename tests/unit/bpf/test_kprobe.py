"""The service, with a child that hands over files in the place of BPF maps."""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from procnet.bpf import bcc_attach, layout
from procnet.bpf.host import Host
from procnet.bpf.kprobe import KprobeOwners, probe
from procnet.bpf.source import source_directory
from procnet.errors import LoadError
from procnet.model import Support
from tests.unit.bpf.fakes import PAGE, FakeRing, fake_host, interpreter
from tests.unit.bpf.test_events import record
from tests.unit.bpf.test_processes import process_record

HOOKS = ["tcp_connect", "udp_sendmsg", "inet_release"]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return fake_host(tmp_path)


class FakeChild:
    """Hands over a ring and a counter, and files in the place of probes."""

    def __init__(
        self, root: Path, hooks: list[str], missing: dict[str, str], probes: int = 1
    ) -> None:
        self.ring = FakeRing(root / "proc")
        self.processes = FakeRing(root / "proc")
        # Whatever number the ring gets on our side, it is described there.
        fdinfo = root / "proc/self/fdinfo"
        for number in range(256):
            (fdinfo / str(number)).write_text(f"max_entries:\t{PAGE}\n")
        self.counter = os.memfd_create("counter")
        os.truncate(self.counter, PAGE)
        sources = (self.ring.descriptor, self.processes.descriptor, self.counter)
        paths = [f"/proc/{os.getpid()}/fd/{fd}" for fd in sources]
        paths += ["/dev/null"] * probes
        self.interpreter = interpreter(
            root,
            f"say({{'hooks': {hooks}, 'missing': {missing}}},"
            f" *(os.open(path, os.O_RDWR) for path in {paths}))",
        )

    def close(self) -> None:
        os.close(self.ring.descriptor)
        os.close(self.processes.descriptor)
        os.close(self.counter)


def with_interpreter(host: Host, path: Path) -> Host:
    return replace(host, interpreters=(*host.interpreters, str(path)))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_open_read_close(host: Host, tmp_path: Path) -> None:
    child = FakeChild(tmp_path, HOOKS, {"raw_sendmsg": "not traceable"})
    files = open_files()
    owners = KprobeOwners.open(with_interpreter(host, child.interpreter))
    assert owners.hooks == tuple(HOOKS)
    assert owners.missing_hooks == ("raw_sendmsg",)
    assert owners.feature().support is Support.YES
    assert "raw_sendmsg (not traceable)" in owners.feature().reason

    assert owners.read() == []
    for inode in (3, 5, 7):
        child.ring.write(record(inode=inode))
    child.ring.write(record(kind=99))
    assert [event.inode for event in owners.read()] == [3, 5, 7]
    child.processes.write(process_record())
    assert [process.exe for process in owners.read_processes()] == ["/usr/bin/curl"]
    os.pwrite(child.counter, (11).to_bytes(8, "little") + (13).to_bytes(8, "little"), 0)
    assert owners.events_lost() == 12  # and the one of no kind
    assert owners.processes_lost() == 13
    assert owners.fileno() >= 0

    for _ in range(2):
        owners.close()
        assert (owners.read(), owners.fileno(), owners.events_lost()) == ([], -1, 12)
        assert (owners.read_processes(), owners.processes_lost()) == ([], 13)
    assert open_files() == files
    child.close()


def test_events_of_other_namespaces_are_left_out(host: Host, tmp_path: Path) -> None:
    child = FakeChild(tmp_path, HOOKS, {})
    owners = KprobeOwners.open(with_interpreter(host, child.interpreter), netns=7)
    for netns in (7, 11):
        child.ring.write(record(netns=netns, inode=netns))
    assert [event.inode for event in owners.read()] == [7]
    owners.close()
    child.close()


def test_any_thread_may_open_read_and_close(host: Host, tmp_path: Path) -> None:
    child = FakeChild(tmp_path, HOOKS, {})
    opened: list[KprobeOwners] = []
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.extend(event.inode for event in opened[0].read())
        seen.extend(event.inode for event in opened[0].read())

    opener = threading.Thread(
        target=lambda: opened.append(KprobeOwners.open(with_interpreter(host, child.interpreter)))
    )
    opener.start()
    opener.join()
    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for inode in range(23):
        child.ring.write(record(inode=inode))
    stop.set()
    for reader in readers:
        reader.join()
    assert sorted(seen) == list(range(23))
    opened[0].close()
    child.close()


@pytest.mark.parametrize("answer", ["refuses", "dies"])
def test_the_words_of_the_compiler_are_in_the_error_and_nowhere_else(
    host: Host, tmp_path: Path, answer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    host = with_interpreter(host, interpreter(tmp_path, answer))
    said = {"refuses": "a.c:7: unknown type", "dies": "process died"}[answer]
    files = open_files()
    with pytest.raises(LoadError, match=said):
        KprobeOwners.open(host)
    assert probe(host).support is Support.NO
    assert open_files() == files
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("required", ["tcp_connect", "udp_sendmsg"])
def test_without_a_required_hook_there_is_nothing(
    host: Host, tmp_path: Path, required: str
) -> None:
    hooks = [hook for hook in HOOKS if hook != required]
    child = FakeChild(tmp_path, hooks, {required: f"kprobe {required} is not traceable"})
    files = open_files()
    with pytest.raises(LoadError, match=f"{required} is not traceable"):
        KprobeOwners.open(with_interpreter(host, child.interpreter))
    assert open_files() == files
    child.close()


def test_a_ring_that_cannot_be_mapped(host: Host, tmp_path: Path) -> None:
    child = FakeChild(tmp_path, HOOKS, {})
    for path in (tmp_path / "proc/self/fdinfo").iterdir():
        path.write_text("pos:\t0\n")
    files = open_files()
    with pytest.raises(LoadError, match="cannot be mapped"):
        KprobeOwners.open(with_interpreter(host, child.interpreter))
    assert open_files() == files
    child.close()


def test_too_few_descriptors_for_the_answer(host: Host, tmp_path: Path) -> None:
    # The child starts with fewer than we have: forty are not too many for it, but for us.
    child = FakeChild(tmp_path, HOOKS, {}, probes=40)
    ours = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
    files = open_files()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (51, before[1]))
    try:
        with pytest.raises(LoadError, match="ulimit"):
            KprobeOwners.open(with_interpreter(host, child.interpreter))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert open_files() == files
    for descriptor in ours:
        os.close(descriptor)
    child.close()


def test_the_first_interpreter_with_bcc_is_used(host: Host, tmp_path: Path) -> None:
    assert probe(with_interpreter(host, interpreter(tmp_path, "checks"))).support is Support.YES


def test_every_program_is_in_the_source() -> None:
    text = (source_directory() / "kprobes.bcc.c").read_text()
    programs = {program for _, _, program, _ in bcc_attach.HOOKS}
    assert {program for program in programs if f"int {program}(struct pt_regs *ctx" in text} == (
        programs
    )
    assert text.count("(struct pt_regs *ctx") == len(programs)
    assert layout.LAYOUT == 5


def test_an_attempt_takes_what_bcc_raises_and_nothing_else() -> None:
    with bcc_attach.Attempt() as attempt:
        raise Exception("Failed to attach")
    assert attempt.refusal == "Failed to attach"
    with pytest.raises(TypeError), bcc_attach.Attempt():
        raise TypeError("a mistake of ours")


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_a_structure_that_bcc_s_own_header_lacks_is_given_to_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], known: bool
) -> None:
    compiled = []

    def compiler(text: str, cflags: list[str]) -> tuple[object, str]:
        compiled.append(text)
        if known or text.startswith("struct bpf_wq { long any; }; "):
            return "program", ""
        os.write(2, b"error: invalid application of 'sizeof' to an incomplete type 'struct bpf_wq'")
        return None, "Failed to compile"

    monkeypatch.setattr(bcc_attach, "build", compiler)
    assert bcc_attach.build_hooks(str(source_directory())) == ("program", "")
    assert len(compiled) == (1 if known else 2)
    assert compiled[-1].endswith(compiled[0])
    assert capfd.readouterr() == ("", "")


def test_what_the_compiler_says_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def compiler(text: str, cflags: list[str]) -> tuple[object, str]:
        os.write(2, b"error: use of undeclared identifier")
        return None, "Failed to compile"

    monkeypatch.setattr(bcc_attach, "build", compiler)
    assert bcc_attach.build_hooks(str(source_directory())) == (None, "Failed to compile")
    assert capfd.readouterr().err == "error: use of undeclared identifier"


def test_the_sources_are_found_installed_and_in_a_checkout(tmp_path: Path) -> None:
    package = tmp_path / "procnet/bpf"
    package.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="reinstall"):
        source_directory(package)
    for directory in (tmp_path / "bpf", package / "src"):
        directory.mkdir()
        (directory / "kprobes.bcc.c").write_text("")
        assert source_directory(package) == directory
