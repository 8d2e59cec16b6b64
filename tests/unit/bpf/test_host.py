from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from procnet.bpf import host as host_module
from procnet.bpf.host import Host, find_obstacle
from procnet.bpf.kprobe import KprobeOwners, probe
from procnet.errors import AccessError, LoadError, ProcnetError, UnsupportedError
from procnet.model import Support
from tests.unit.bpf.fakes import RELEASE, fake_host, interpreter


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return fake_host(tmp_path)


def refusal(host: Host) -> tuple[str, str, type[ProcnetError]]:
    """Reason and remedy of probe(), and the error of open(), which must agree."""
    feature = probe(host)
    assert feature.support is Support.NO
    with pytest.raises(ProcnetError) as caught:
        KprobeOwners.open(host)
    assert feature.reason in str(caught.value)
    assert feature.remedy and feature.remedy in str(caught.value)
    return feature.reason, feature.remedy, type(caught.value)


def test_nothing_is_in_the_way(host: Host) -> None:
    assert find_obstacle(host) is None


def test_no_kprobes(host: Host) -> None:
    (host.sysfs_root / "bus/event_source/devices/kprobe").rmdir()
    reason, remedy, error = refusal(host)
    assert "the kernel has no kprobes" in reason
    assert "CONFIG_KPROBES" in remedy
    assert error is UnsupportedError


@pytest.mark.parametrize(("text", "obstructs"), [("0\n", True), ("1\n", False)])
def test_kprobes_are_switched_off(host: Host, text: str, obstructs: bool) -> None:
    switch = host.sysfs_root / "kernel/debug/kprobes/enabled"
    switch.parent.mkdir(parents=True)
    switch.write_text(text)
    obstacle = find_obstacle(host)
    assert (obstacle is not None and "switched off" in obstacle.reason) is obstructs


@pytest.mark.parametrize("kind", ["pid", "time"])
def test_another_namespace(host: Host, kind: str) -> None:
    (host.proc_root / "self/ns" / kind).write_text("")  # whatever its inode, it is another
    reason, remedy, error = refusal(host)
    assert f"not in the initial {kind} namespace" in reason
    assert kind in remedy
    assert error is UnsupportedError


@pytest.mark.parametrize(
    ("capabilities", "obstructs"),
    [
        ("0000000000000000", True),
        ("0000000000003000", True),  # CAP_NET_ADMIN, CAP_NET_RAW
        ("0000008000000000", True),  # CAP_BPF
        ("000000c000000000", False),  # with CAP_PERFMON
        ("0000000000200000", False),  # CAP_SYS_ADMIN
    ],
)
def test_privileges(host: Host, capabilities: str, obstructs: bool) -> None:
    (host.proc_root / "self/status").write_text(f"CapInh:\tffff\nCapEff:\t{capabilities}\n")
    assert (find_obstacle(host) is not None) is obstructs
    if obstructs:
        reason, remedy, error = refusal(host)
        assert "CAP_BPF and CAP_PERFMON" in reason
        assert "root" in remedy
        assert error is AccessError


@pytest.mark.parametrize(
    ("level", "capabilities", "obstructs"),
    [
        ("3", "000000c000000000", True),
        ("4", "000000c000000000", True),
        ("2", "000000c000000000", False),
        ("-1", "000000c000000000", False),
        ("3", "0000000000200000", False),
    ],
)
def test_paranoia_is_named_when_a_hook_was_refused(
    host: Host, tmp_path: Path, level: str, capabilities: str, obstructs: bool
) -> None:
    (host.proc_root / "sys/kernel").mkdir(parents=True)
    (host.proc_root / "sys/kernel/perf_event_paranoid").write_text(f"{level}\n")
    (host.proc_root / "self/status").write_text(f"CapEff:\t{capabilities}\n")
    path = interpreter(tmp_path, "cannot_attach")
    reason, remedy, error = refusal(replace(host, interpreters=(str(path),)))
    if obstructs:
        assert f"kernel.perf_event_paranoid is {level}" in reason
        assert "sysctl kernel.perf_event_paranoid=2" in remedy
        assert error is AccessError
    else:
        assert "not traceable" in reason and "Permission denied" in remedy
        assert error is LoadError


def test_no_headers(host: Host) -> None:
    reason, remedy, _ = refusal(replace(host, release="6.1.0-29-amd64"))
    assert "no headers of the running kernel 6.1.0-29-amd64" in reason
    assert "linux-headers-6.1.0-29-amd64" in remedy


def test_headers_of_another_release(host: Host) -> None:
    build = host.modules_root / RELEASE / "build"
    (build / "include/generated/utsrelease.h").write_text('#define UTS_RELEASE "6.1.0-7-amd64"\n')
    reason, remedy, _ = refusal(host)
    assert "are of release 6.1.0-7-amd64" in reason and RELEASE in reason
    assert f"linux-headers-{RELEASE}" in remedy


def test_headers_that_say_it_in_the_other_file(host: Host) -> None:
    include = host.modules_root / RELEASE / "build/include"
    (include / "generated/utsrelease.h").unlink()
    obstacle = find_obstacle(host)
    assert obstacle is not None and "release unknown" in obstacle.reason
    (include / "config").mkdir()
    (include / "config/kernel.release").write_text(f"{RELEASE}\n")
    assert find_obstacle(host) is None


def test_headers_that_the_environment_names(host: Host, tmp_path: Path) -> None:
    good = str(host.modules_root / RELEASE / "build")
    assert find_obstacle(replace(host, environment={"BCC_KERNEL_SOURCE": good})) is None
    for other in (tmp_path, tmp_path / "nowhere"):
        reason, remedy, _ = refusal(replace(host, environment={"BCC_KERNEL_SOURCE": str(other)}))
        assert "BCC_KERNEL_SOURCE" in reason
        assert remedy == "unset BCC_KERNEL_SOURCE"


@pytest.mark.parametrize("place", ["sys/kernel/kheaders.tar.xz", "module"])
def test_headers_that_the_kernel_carries(host: Host, tmp_path: Path, place: str) -> None:
    host = replace(host, release="6.1.0-29-amd64")
    if place == "module":
        place = "modules/6.1.0-29-amd64/kernel/kernel/kheaders.ko.xz"
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b"")
    assert find_obstacle(host) is None


def test_unpacked_headers_of_somebody_else(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = replace(host, release="6.1.0-29-amd64")
    (host.sysfs_root / "kernel").mkdir()
    (host.sysfs_root / "kernel/kheaders.tar.xz").write_bytes(b"")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "kheaders-6.1.0-29-amd64").mkdir()
    assert find_obstacle(host) is None
    # Seen by another user, it is somebody else's.
    owner = (tmp_path / "kheaders-6.1.0-29-amd64").stat().st_uid
    monkeypatch.setattr(host_module, "_ROOT_UID", owner + 1)
    monkeypatch.setattr(host_module.os, "geteuid", lambda: owner + 2)
    obstacle = find_obstacle(host)
    assert obstacle is not None and "belongs to user" in obstacle.reason


def test_no_bcc(host: Host) -> None:
    reason, remedy, error = refusal(host)
    assert "Python modules of BCC are not installed (No module named 'bcc')" in reason
    assert "python3-bpfcc" in remedy
    assert error is UnsupportedError
    reason, _, _ = refusal(replace(host, interpreters=("/nonexistent/python3",)))
    assert "/nonexistent/python3" in reason
    assert "no Python interpreter" in refusal(replace(host, interpreters=()))[0]
