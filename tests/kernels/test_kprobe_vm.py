"""The kprobe rung on kernels that have kprobes: boots each, and runs tests/kernels/guest there."""

from __future__ import annotations

import shlex
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from tests.kernels.vm import run_in_vm

KERNELS = {
    # A kernel and its headers of the same release; docs and bpf/README.md quote this list.
    "6.1": ("vmlinuz-6.1.0-*-amd64", "apt-get install linux-image-amd64 linux-headers-amd64"),
}
SUITES = {
    # How many tests there are, so that none can go missing in silence.
    "tests/kernels/guest/test_kprobe_guest.py": 35,
    "tests/kernels/guest/test_report_guest.py": 15,
}

TIMEOUT_S = 900.0


@pytest.mark.vm
@pytest.mark.parametrize("version", KERNELS)
def test_the_guest_suite_passes(version: str, tmp_path: Path) -> None:
    pattern, remedy = KERNELS[version]
    images = sorted(Path("/boot").glob(pattern))
    if not images:
        pytest.fail(f"no /boot/{pattern}; on Debian 12: {remedy}", pytrace=False)
    report = tmp_path / "guest.xml"
    pytest_call = f"{shlex.quote(sys.executable)} -m pytest -p no:cacheprovider -s"
    result = run_in_vm(
        images[-1],
        f"{pytest_call} --junit-xml={shlex.quote(str(report))} {' '.join(SUITES)}",
        timeout_s=TIMEOUT_S,
        share=tmp_path,
    )
    said = f"{result.output[-20_000:]}\n--- console ---\n{result.console[-2_000:]}"
    print(said)
    assert result.exit_status == 0, said
    counts = xml.parse(report).getroot()[0].attrib
    found = {name: int(counts[name]) for name in ("tests", "errors", "failures", "skipped")}
    assert found == {"tests": sum(SUITES.values()), "errors": 0, "failures": 0, "skipped": 0}, said
