"""How long does ``import procnet`` take, against importing what it stands on in the same way?

    $ .venv/bin/python benchmarks/import_time.py

Each figure is the least of 21 fresh interpreters.
"""

import subprocess
import sys

ROUNDS = 21
STATEMENTS = ("import procnet", "import dpkt", "import cachetools, logging, socket, subprocess")
TIMED = "import time; begun = time.perf_counter(); {}; print(time.perf_counter() - begun)"


def least_ms(statement: str) -> float:
    argv = [sys.executable, "-c", TIMED.format(statement)]
    times_s = [float(subprocess.check_output(argv)) for _ in range(ROUNDS)]
    return min(times_s) * 1000


if __name__ == "__main__":
    for statement in STATEMENTS:
        try:
            print(f"{statement:<48}{least_ms(statement):7.1f} ms")
        except subprocess.CalledProcessError:
            print(f"{statement:<48}  not installed")
