"""What tests/kernels promises to run in its machines is what there is, known before one boots."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.kernels import test_counting_vm as counting_vm
from tests.kernels import test_owners_vm as owners_vm
from tests.kernels.suites import BUT_NOT
from tests.privileged.namespace import TOP


@pytest.mark.parametrize(
    ("family", "suites", "played"),
    [
        pytest.param("core", owners_vm.CORE_6_1, owners_vm.PLAYED, id="core-6.1"),
        pytest.param("core", owners_vm.CORE_6_12, owners_vm.PLAYED, id="core-6.12"),
        pytest.param("kprobe", owners_vm.KPROBE, owners_vm.SHARED, id="kprobe"),
        *(
            pytest.param("core", *counting_vm.suites(version), id=f"counting-{version}")
            for version in owners_vm.KERNELS
        ),
    ],
)
def test_as_many_tests_as_are_promised(
    family: str, suites: dict[str, int], played: list[str]
) -> None:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-qq", "--collect-only"]
    listed = subprocess.run(
        [*argv, BUT_NOT, *suites], env={**os.environ, **owners_vm.environment(family, played)},
        cwd=TOP, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stdout
    lines = [line.rpartition(": ") for line in listed.stdout.splitlines()]
    found = {file: int(number) for file, _, number in lines if number.isdigit()}
    promised: Counter[str] = Counter()
    for selection, number in suites.items():
        promised[selection.partition("::")[0]] += number
    assert found == promised
