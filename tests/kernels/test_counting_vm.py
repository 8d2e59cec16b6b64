"""The programs that count on other kernels: boots each, and runs the native suites there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.suites import run_suites
from tests.kernels.test_owners_vm import ACCURACY, KERNELS, PLAYED, SHARED, environment

AT_SOCKETS, COMPARING = (
    f"tests/privileged/test_{name}.py::test_" for name in ("socket_counting", "comparing_sockets")
)
ELSEWHERE = "tests/privileged/test_one_namespace.py::test_sockets_of_other_namespaces_take_no_room"
SUITE = {
    "tests/privileged/test_kernel_counting.py": 29,
    f"{AT_SOCKETS}behind_a_masquerade_the_inner_end_is_counted": 1,
    f"{AT_SOCKETS}more_remote_ends_than_there_is_room_for_are_one_row": 1,
    f"{AT_SOCKETS}what_leaves_after_its_process_is_its_own": 1,
    f"{AT_SOCKETS}a_socket_that_connects_again_is_two_flows": 1,
    f"{AT_SOCKETS}without_the_right_to_capture_sockets_are_counted": 1,
}
# Minutes, where each processor is emulated: one machine shows them.
ONCE = {
    ELSEWHERE: 1,
    f"{AT_SOCKETS}each_hook_alone_tells_of_the_end_of_a_connection": 2,
    f"{COMPARING}of_processes_alone_nothing_is_left[kernel]": 1,
    f"{AT_SOCKETS}every_short_lived_sender_is_named[tcp-200]": 1,
    f"{AT_SOCKETS}every_short_lived_sender_is_named[udp-200]": 1,
    f"{COMPARING}the_end_of_a_connection_is_the_kernel_s": 1,
    f"{COMPARING}the_headers_of_fragments_are_no_packets_of_nobody_s": 1,
}


def suites(version: str) -> tuple[dict[str, int], list[str]]:
    """For the kernel, and the scenes that are played there."""
    played = PLAYED if version == "6.1" else SHARED
    of_scenes = f"{ACCURACY}::test_what_processes_move_is_counted_at_their_sockets"
    once = ONCE if version == "6.1" else {}
    return {**SUITE, **once, of_scenes: len(played)}, played


@pytest.mark.vm
@pytest.mark.parametrize("version", KERNELS)
def test_the_native_suite_passes(version: str, tmp_path: Path) -> None:
    chosen, played = suites(version)
    run_suites(*KERNELS[version], chosen, tmp_path, environment("core", played))
