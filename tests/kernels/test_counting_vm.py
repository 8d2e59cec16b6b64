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
# Minutes, where each processor is emulated; on 6.12 hooks are asked about the same as natively.
SUITES = {
    "6.1": {**SUITE, COMPARING: 15},
    "6.12": {**SUITE, f"{COMPARING}::test_of_processes_alone_nothing_is_left": 2},
}


@pytest.mark.vm
@pytest.mark.parametrize("version", KERNELS)
def test_the_native_suite_passes(version: str, tmp_path: Path) -> None:
    run_suites(*KERNELS[version], SUITES[version], tmp_path, environment("core"))
