"""The mixed load of the soak, for a moment: whenever it pauses, the reports have every byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.privileged.namespace import TOP

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize("counting", ["auto", "socket"])
def test_a_mixed_load_is_exact_whenever_it_pauses(tmp_path: Path, counting: str) -> None:
    saved = tmp_path / "soak.json"
    enough = ["--minutes", "0.15", "--connections", "101"]
    argv = [sys.executable, "-m", "benchmarks.soak", *enough, "--counting", counting]
    argv += ["--save", str(saved)]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(saved.read_text())
    assert told["connections"] >= 101 and told["processes"] > 0
    for sample in told["samples"]:
        assert sample["moved_bytes"] > 0
        assert sample["uncounted_bytes"] == sample["misnamed_bytes"] == 0, sample
        # An event that is lost costs names.
        assert not sample["unnamed_bytes"] or sample["loss"].get("events_lost"), sample
