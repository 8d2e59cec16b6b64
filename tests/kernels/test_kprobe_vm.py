"""The kprobe rung on kernels that have kprobes: boots each, and runs tests/kernels/guest there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.suites import run_suites

KERNELS = {
    # A kernel and its headers of the same release; docs and bpf/README.md quote this list.
    "6.1": ("vmlinuz-6.1.0-*-amd64", "apt-get install linux-image-amd64 linux-headers-amd64"),
}
SUITES = {
    # How many tests there are, so that none can go missing in silence.
    "tests/kernels/guest/test_kprobe_guest.py": 35,
    "tests/kernels/guest/test_report_guest.py": 15,
}


@pytest.mark.vm
@pytest.mark.parametrize("version", KERNELS)
def test_the_guest_suite_passes(version: str, tmp_path: Path) -> None:
    run_suites(*KERNELS[version], SUITES, tmp_path)
