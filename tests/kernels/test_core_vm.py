"""The CO-RE rung on other kernels: boots each, and runs the native suites there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.suites import run_suites

KERNELS = {
    "6.1": ("vmlinuz-6.1.0-*-amd64", "apt-get install linux-image-amd64"),
    "6.12": (
        "vmlinuz-6.12.*+deb12-amd64",
        "apt-get install the newest linux-image-6.12.*+deb12-amd64 (make ready-vm does)",
    ),
}
SUITES = {
    # How many tests there are, so that none can go missing in silence.
    "tests/privileged/test_core_owners.py": 46,
    "tests/privileged/test_sharing.py::test_the_kernel_names_every_user": 8,
    "tests/privileged/test_short_lived.py::test_the_kernel_names_every_short_lived_sender": 4,
}
WITHOUT_FENTRY = {"PROCNET_CORE_FENTRY": "0"}  # test_core_owners.py reads it


@pytest.mark.vm
@pytest.mark.parametrize("version", KERNELS)
def test_the_native_suites_pass_with_fentry(version: str, tmp_path: Path) -> None:
    run_suites(*KERNELS[version], SUITES, tmp_path)


@pytest.mark.vm
def test_the_native_suites_pass_without_fentry(tmp_path: Path) -> None:
    """As on a kernel that refuses fentry; before 6.3 the rung itself refuses that."""
    suite = "tests/privileged/test_core_owners.py"
    run_suites(*KERNELS["6.12"], {suite: SUITES[suite]}, tmp_path, WITHOUT_FENTRY)
