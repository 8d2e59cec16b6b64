"""The programs that count on other kernels: boots each, and runs the native suites there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.suites import run_suites
from tests.kernels.test_owners_vm import KERNELS

SUITE = {
    "tests/privileged/test_kernel_counting.py": 29,
    "tests/privileged/test_socket_counting.py": 10,
}


@pytest.mark.vm
@pytest.mark.parametrize("version", KERNELS)
def test_the_native_suite_passes(version: str, tmp_path: Path) -> None:
    run_suites(*KERNELS[version], SUITE, tmp_path, {})
