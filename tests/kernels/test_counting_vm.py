"""The programs that count on other kernels: boots each, and runs the native suites there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.suites import run_suites
from tests.kernels.test_owners_vm import ACCURACY, KERNELS, PLAYED, environment

SUITE = {
    "tests/privileged/test_kernel_counting.py": 30,
    "tests/privileged/test_socket_counting.py": 10,
    f"{ACCURACY}::test_what_processes_move_is_counted_at_their_sockets": len(PLAYED),
}
COMPARING = "tests/privileged/test_comparing_sockets.py"
# Of these what depends on the kernel; the whole file takes four minutes on an emulated processor.
ALONE, BESIDE, ENDS, FRAGMENTS = (
    f"{COMPARING}::test_{name}"
    for name in (
        "of_processes_alone_nothing_is_left",
        "what_no_socket_moved_is_told_to_the_byte",
        "the_end_of_a_connection_is_the_kernel_s",
        "the_headers_of_fragments_are_no_packets_of_nobody_s",
    )
)
ELSEWHERE = "tests/privileged/test_one_namespace.py::test_sockets_of_other_namespaces_take_no_room"
SUITES = {
    "6.1": {
        **SUITE,
        f"{ALONE}[kernel]": 1,
        f"{BESIDE}[kernel]": 1,
        ENDS: 1,
        FRAGMENTS: 1,
        ELSEWHERE: 1,
    },
    "6.12": {**SUITE, f"{ALONE}[kernel]": 1, ELSEWHERE: 1},
}


@pytest.mark.vm
@pytest.mark.parametrize("version", KERNELS)
def test_the_native_suite_passes(version: str, tmp_path: Path) -> None:
    run_suites(*KERNELS[version], SUITES[version], tmp_path, environment("core"))
