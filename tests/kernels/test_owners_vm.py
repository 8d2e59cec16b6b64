"""Every family of hooks on other kernels: boots each, and runs the native suites there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.suites import run_suites

KERNELS = {
    # Each with headers of the same release, for BCC; docs and bpf/README.md quote this list.
    "6.1": ("vmlinuz-6.1.0-*-amd64", "apt-get install linux-image-amd64 linux-headers-amd64"),
    "6.12": (
        "vmlinuz-6.12.*+deb12-amd64",
        "apt-get install the newest linux-image-6.12.*+deb12-amd64 and its headers (make ready-vm"
        " does)",
    ),
}
# How many tests there are, so that none can go missing in silence.
FACTS = {
    "tests/privileged/owners/test_tcp.py": 22,
    "tests/privileged/owners/test_datagrams.py": 22,
    "tests/privileged/owners/test_raw.py": 9,
    "tests/privileged/owners/test_processes.py": 18,
}
CORE = {
    **FACTS,
    "tests/privileged/owners/test_core.py": 11,
    "tests/privileged/test_kinds.py::test_a_kind_is_named_to_the_byte_and_nobody_else_is": 35,
    "tests/privileged/test_kinds.py::test_nobody_is_named_who_did_not_say_so": 1,
    "tests/privileged/test_kinds.py::test_a_pid_that_is_used_again_is_two_processes": 1,
    "tests/privileged/test_sharing.py::test_the_kernel_names_every_user": 9,
    "tests/privileged/test_sharing.py::test_bytes_in_one_queue_are_never_the_other_process_s": 2,
}
SHORT_LIVED = "tests/privileged/test_short_lived.py::test_the_kernel_names_every_short_lived_sender"
# Minutes, where each processor is emulated: of many short-lived senders, and of sockets older than
# the hooks (they go by the iterator, which is the same in both), one machine tells.
CORE_6_1 = {
    **CORE,
    f"{SHORT_LIVED}[udp-200]": 1,
    f"{SHORT_LIVED}[tcp-200]": 1,
    "tests/privileged/test_older_sockets.py": 7,
}
CORE_6_12 = {**CORE, f"{SHORT_LIVED}[udp-1009]": 1, f"{SHORT_LIVED}[tcp-1009]": 1}
KPROBE = {
    **FACTS,
    "tests/privileged/owners/test_kprobe.py": 8,
    "tests/kernels/guest/test_report_guest.py": 16,
}


# Before 6.3 the CO-RE rung itself refuses to go without fentry.
@pytest.mark.vm
@pytest.mark.parametrize(
    ("version", "family", "suites"),
    [
        pytest.param("6.1", "core", CORE_6_1, id="6.1-core"),
        pytest.param("6.1", "kprobe", KPROBE, id="6.1-kprobe"),
        pytest.param("6.12", "core", CORE_6_12, id="6.12-core"),
        pytest.param("6.12", "core-without-fentry", FACTS, id="6.12-core-without-fentry"),
        pytest.param("6.12", "kprobe", FACTS, id="6.12-kprobe"),
    ],
)
def test_the_native_suites_pass(
    version: str, family: str, suites: dict[str, int], tmp_path: Path
) -> None:
    run_suites(*KERNELS[version], suites, tmp_path, {"PROCNET_OWNERS": family})
