"""The CO-RE rung on other kernels: boots each, and runs the native suites there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.suites import run_suites

KERNELS = {
    "6.1": ("vmlinuz-6.1.0-*-amd64", "apt-get install linux-image-amd64"),
}
SUITES = {
    # How many tests there are, so that none can go missing in silence.
    "tests/privileged/test_core_owners.py": 46,
    "tests/privileged/test_sharing.py::test_the_kernel_names_every_user": 8,
    "tests/privileged/test_short_lived.py::test_the_kernel_names_every_short_lived_sender": 2,
}


@pytest.mark.vm
@pytest.mark.parametrize("version", KERNELS)
def test_the_native_suites_pass(version: str, tmp_path: Path) -> None:
    run_suites(*KERNELS[version], SUITES, tmp_path)
