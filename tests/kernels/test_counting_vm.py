"""The programs that count on other kernels: boots each, and runs the native suites there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.suites import run_suites
from tests.kernels.test_owners_vm import ACCURACY, KERNELS, PLAYED, environment

SUITE = {
    "tests/privileged/test_kernel_counting.py": 30,
    "tests/privileged/test_socket_counting.py": 10,
    "tests/privileged/test_comparing_sockets.py": 15,
    f"{ACCURACY}::test_what_processes_move_is_counted_at_their_sockets": len(PLAYED),
}


@pytest.mark.vm
@pytest.mark.parametrize("version", KERNELS)
def test_the_native_suite_passes(version: str, tmp_path: Path) -> None:
    run_suites(*KERNELS[version], SUITE, tmp_path, environment("core"))
