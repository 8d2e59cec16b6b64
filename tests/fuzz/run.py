"""Looks for inputs that break a target, guided by coverage (atheris, which is libFuzzer).

    python -m tests.fuzz.run [TARGET …] [--seconds N] [--keep]

All targets, if none is named, ``N`` seconds each. Inputs that reach new code are gathered in
build/fuzz/TARGET; one that breaks a property goes to build/fuzz/TARGET.crash-*, and the exit status
is 1. ``--keep`` looks for nothing: it adds to tests/fuzz/corpus/TARGET the fewest of the gathered
inputs that reach what the kept ones do not.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import TARGETS

HERE = Path(__file__).resolve().parent
FOUND = HERE.parents[1] / "build/fuzz"
# What one input may take before it counts as a defect. Python under coverage is slow, and the
# machine may be busy.
LIMITS = ["-timeout=20", "-rss_limit_mb=1024", "-max_len=16384"]
_MORE_S = 300  # to start, and to sort out what was gathered
_FIGURE = re.compile(
    r"^(Done \d+ runs|MERGE-OUTER: \d+ new files|.*ERROR: libFuzzer|SUMMARY|\w*Error\b).*",
    re.MULTILINE,
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=10, metavar="N")
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}")
    # As an exception it ends the child and removes the files, on its way out of run().
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    failed = 0
    for target in arguments.targets or TARGETS:
        failed |= run(target, arguments.seconds, arguments.keep)
    return failed


def run(target: str, seconds: int, keep: bool) -> int:
    """libFuzzer ends its process as it likes, so it gets one, whose files go with it."""
    FOUND.mkdir(parents=True, exist_ok=True)
    shared = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as space,
        open(FOUND / f"{target}.log", "wb") as log,
    ):
        done = subprocess.run(
            [sys.executable, "-c", code_of(target, seconds, keep)],
            cwd=HERE.parents[1], env={**os.environ, "TMPDIR": space},
            stdout=log, stderr=subprocess.STDOUT, timeout=seconds + _MORE_S,
        )  # fmt: skip
    said = (FOUND / f"{target}.log").read_text(errors="replace")
    print(f"{target}: {'; '.join(match[0] for match in _FIGURE.finditer(said))}", flush=True)
    if done.returncode:
        print(f"{target}: FAILED, see {FOUND}/{target}.log and .crash-*", flush=True)
    return int(done.returncode != 0)


def code_of(target: str, seconds: int, keep: bool) -> str:
    return f"from tests.fuzz.run import fuzz; fuzz({target!r}, {seconds}, {keep})"


def fuzz(target: str, seconds: int, keep: bool) -> None:
    """Never returns."""
    import atheris

    with atheris.instrument_imports(include=["procnet", "dpkt"]):
        import dpkt  # noqa: F401  (procnet imports it late, when nothing is instrumented any more)

        module = importlib.import_module(f"tests.fuzz.{target}")
    found, corpus = FOUND / target, HERE / "corpus" / target
    for directory in (found, corpus):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(module.seeds()):
        (found / f"seed-{number}").write_bytes(seed)
    words = [*LIMITS, "-print_final_stats=1", f"-artifact_prefix={FOUND / target}."]
    if keep:
        # Short ones, for a corpus that a person can carry: the last word on a length counts.
        words += ["-set_cover_merge=1", "-max_len=512", str(corpus), str(found)]
    else:
        words += [f"-max_total_time={seconds}", str(found), str(corpus)]
    # A merge is made by children, which libFuzzer starts by this name with words of its own.
    name = shlex.join([sys.executable, "-c", code_of(target, seconds, keep)])
    atheris.Setup([name, *(sys.argv[1:] or words)], module.check)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
