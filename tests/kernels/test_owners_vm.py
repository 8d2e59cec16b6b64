"""Every family of hooks on other kernels: boots each, and runs the native suites there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.suites import run_suites
from tests.privileged.accuracy.playing import ALL
from tests.workloads import scenarios, sharing

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
    "tests/privileged/owners/test_tcp.py": 24,
    "tests/privileged/owners/test_datagrams.py": 22,
    "tests/privileged/owners/test_raw.py": 9,
    "tests/privileged/owners/test_processes.py": 18,
}
ACCURACY = "tests/privileged/test_accuracy.py"
# Minutes, where each processor is emulated, and nothing that others do not show.
_LEFT_OUT = {
    "cable_many_small_connections",
    "cable_parallel_burst",
    "cable_recvmmsg",
    "cable_sendmmsg",
    "cable_small_packet_flood",
    "cable_tcp_v4_mapped",
    "cable_udp_v6",
    # Before 6.16 nobody can tell these writers apart: what others do not show is natively shown.
    "blocked_writers",
    "five_writers",
    "nothing_written",
    "tiny_turns",
}
PLAYED = [name for name in ALL if name not in _LEFT_OUT]
SHARED = list(scenarios.scenarios("", *sharing.KINDS))
CORE = {
    **FACTS,
    "tests/privileged/owners/test_core.py": 14,
    f"{ACCURACY}::test_every_byte_is_counted_and_has_its_process": len(PLAYED),
    f"{ACCURACY}::test_nobody_is_named_who_did_not_say_so": 1,
    f"{ACCURACY}::test_a_pid_that_is_used_again_is_two_processes": 1,
}
FORKS = "tests/privileged/test_forks.py::test_"
SHORT_LIVED = "tests/privileged/test_short_lived.py::test_the_kernel_names_every_short_lived_sender"
# Minutes, where each processor is emulated: of sockets older than the hooks (they go by the
# iterator, which is the same in both) one machine tells, of 1009 short-lived senders the host.
CORE_6_1 = {
    **CORE,
    f"{SHORT_LIVED}[udp-200]": 1,
    f"{SHORT_LIVED}[tcp-200]": 1,
    # What the kernel asks of those whom it tells of forks has changed in 6.6.
    f"{FORKS}processes_are_told_and_no_threads": 1,
    f"{FORKS}they_are_told_in_another_network_namespace_too": 1,
    f"{FORKS}what_found_no_room_is_known_to_be_missing": 1,
}
CORE_6_12 = {
    **CORE,
    f"{SHORT_LIVED}[udp-200]": 1,
    "tests/privileged/test_older_sockets.py": 7,
}
KPROBE = {
    **FACTS,
    "tests/privileged/owners/test_kprobe.py": 7,
    "tests/kernels/guest/test_report_guest.py": 7,
    f"{ACCURACY}::test_every_byte_is_counted_and_has_its_process": len(SHARED),
}


def environment(family: str, played: list[str]) -> dict[str, str]:
    """For the suites of a family, with these scenes."""
    return {"PROCNET_OWNERS": family, "PROCNET_SCENARIOS": " ".join(played)}


# Before 6.3 the CO-RE rung itself refuses to go without fentry.
@pytest.mark.vm
@pytest.mark.parametrize(
    ("version", "family", "suites"),
    [
        pytest.param("6.1", "core", CORE_6_1, id="6.1-core"),
        pytest.param("6.1", "kprobe", KPROBE, id="6.1-kprobe"),
        pytest.param("6.12", "core", CORE_6_12, id="6.12-core"),
        pytest.param("6.12", "kprobe", FACTS, id="6.12-kprobe"),
        # The last of all, since it is the shortest: whoever runs dry first takes it from the other.
        pytest.param("6.12", "core-without-fentry", FACTS, id="6.12-core-without-fentry"),
    ],
)
def test_the_native_suites_pass(
    version: str, family: str, suites: dict[str, int], tmp_path: Path
) -> None:
    played = SHARED if family == "kprobe" else PLAYED
    run_suites(*KERNELS[version], suites, tmp_path, environment(family, played))
