"""Which tests run here, and the promise that a skip says how to un-skip itself.

Tests in ``tests/privileged`` are ``privileged``, tests in ``tests/kernels`` are ``vm``.

PROCNET_PRIVILEGED
    unset: privileged tests run where they can, else they are skipped with the reason.
    1: what they need is there, or they fail. The gate says this: it may not pass by skipping.
    0: they never run.

Virtual machines take minutes, so those tests run only when asked for: ``-m vm`` or PROCNET_VM=1.
Tests in ``tests/kernels/guest`` are for the inside of one: their driver names that directory.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

# Assertions in the helpers of tests, too, tell the values.
pytest.register_assert_rewrite("tests.privileged", "tests.kernels", "tests.workloads")

TESTS = Path(__file__).resolve().parent
DIRECTORY_MARKS = {"privileged": "privileged", "kernels": "vm"}
COMMANDS = {"ip": "iproute2", "nft": "nftables", "ethtool": "ethtool"}


def pytest_configure() -> None:
    # What a shell starts in the background ignores Ctrl-C, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for directory, mark in DIRECTORY_MARKS.items():
            if TESTS / directory in item.path.parents:
                item.add_marker(mark)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("vm") and not vm_wanted(item.config):
        pytest.skip("boots a virtual machine, which takes minutes: ask for it by `make test-vm`")
    if item.get_closest_marker("privileged"):
        if os.environ.get("PROCNET_PRIVILEGED") == "0":
            pytest.skip("PROCNET_PRIVILEGED=0; unset it, or set it to 1, to run this")
        require_or_skip(*missing_for_privileged())


def vm_wanted(config: pytest.Config) -> bool:
    words = re.sub(r"\bnot\s+vm\b", "", config.getoption("markexpr")).split()
    inside = any("kernels/guest" in argument for argument in config.args)
    return inside or "vm" in words or os.environ.get("PROCNET_VM") == "1"


def require_or_skip(missing: str, remedy: str) -> None:
    """Nothing if nothing is missing; else a skip, or a failure where skips are forbidden."""
    if not missing:
        return
    if os.environ.get("PROCNET_PRIVILEGED") == "1":
        pytest.fail(f"{missing}; {remedy} (PROCNET_PRIVILEGED=1: no skips)", pytrace=False)
    pytest.skip(f"{missing}; {remedy} (PROCNET_PRIVILEGED=1 makes this a failure)")


@pytest.fixture
def require() -> Callable[[object, str, str], None]:
    """``require(condition, what_is_missing, remedy)`` for what a single test needs besides."""

    def check(condition: object, missing: str, remedy: str) -> None:
        require_or_skip("" if condition else missing, remedy)

    return check


@functools.cache
def missing_for_privileged() -> tuple[str, str]:
    """What the laboratory lacks on this machine, and the remedy; empty if nothing."""
    if os.geteuid() != 0:
        return "needs root", "run `make test`, or `sudo -E .venv/bin/pytest`"
    absent = [package for command, package in COMMANDS.items() if shutil.which(command) is None]
    if absent:
        return f"needs {', '.join(absent)}", "run `make test`, which installs them"
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    if made.returncode != 0:
        return f"no network namespace: {made.stderr.strip()}", "needs CAP_SYS_ADMIN (no sandbox)"
    return "", ""
