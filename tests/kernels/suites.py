"""Runs test suites inside a virtual machine, and makes sure that all of it ran."""

from __future__ import annotations

import shlex
import sys
import xml.etree.ElementTree as xml
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.kernels.vm import run_in_vm

TIMEOUT_S = 1000.0
_STUCK_S = 400
"""A test that takes so long says where it is; it may be the one that is killed."""
# A guest has one processor: two of them take no longer at once than one alone, where machines of
# two processors wait for each other's locks.
BUT_NOT = (
    "--deselect=tests/privileged/test_kernel_counting.py"
    "::test_a_flow_of_several_cpus_is_a_run_for_each"
)
# First of all, for where what is said will be cut.
_OF_FAILURES, _FAILURE_LINES = ("FAILED ", "ERROR ", "E   "), 60


def run_suites(
    pattern: str,
    remedy: str,
    suites: Mapping[str, int],
    directory: Path,
    environment: Mapping[str, str],
) -> None:
    """Boots the newest /boot/``pattern`` and runs ``suites`` (selection: how many tests) there.

    Fails if there is no such kernel (``remedy`` says how to get it), if a test failed or was
    skipped, and if there were fewer or more than promised. ``directory`` is shared with the guest.
    """
    images = sorted(Path("/boot").glob(pattern))
    if not images:
        pytest.fail(f"no /boot/{pattern}; on Debian 12: {remedy}", pytrace=False)
    report = directory / "guest.xml"
    settings = [f"{name}={value}" for name, value in environment.items()]
    pytest_call = shlex.join(
        [
            "env",
            *settings,
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-s",
            "--durations=5",
            "-o",
            f"faulthandler_timeout={_STUCK_S}",
            BUT_NOT,
        ]
    )
    result = run_in_vm(
        images[-1],
        f"{pytest_call} --junit-xml={shlex.quote(str(report))} {shlex.join(suites)}",
        timeout_s=TIMEOUT_S,
        share=directory,
    )
    failed = [line for line in result.output.splitlines() if line.startswith(_OF_FAILURES)]
    output, console = result.output[-20_000:], result.console[-2_000:]
    failures = "\n".join(failed[-_FAILURE_LINES:])
    said = f"{failures}\n--- output ---\n{output}\n--- console ---\n{console}"
    print(said)
    assert result.exit_status == 0, said
    counts = xml.parse(report).getroot()[0].attrib
    found = {name: int(counts[name]) for name in ("tests", "errors", "failures", "skipped")}
    assert found == {"tests": sum(suites.values()), "errors": 0, "failures": 0, "skipped": 0}, said
