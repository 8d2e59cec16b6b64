"""Flows by the hundred thousand: who sends them, and what they cost a process."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.privileged.namespace import TOP, Namespace, run

SYN_BYTES = 40
DATAGRAM_BYTES = 39

# Nobody answers: what comes in is seen by a tap and goes no further.
SILENCE = "table inet silence { chain in { type filter hook input priority 0; drop; }; }"
DEAF_TO_DATAGRAMS = (
    "table inet silence { chain in { type filter hook input priority 0; udp dport 9 drop; }; }"
)


def build(directory: Path) -> Path:
    """The workload tests/workloads/flood.c."""
    program = directory / "flood"
    source = TOP / "tests" / "workloads" / "flood.c"
    run(["gcc", "-O2", "-Wall", "-Werror", "-o", str(program), str(source)])
    return program


class Flood:
    """The workload, running in a namespace, until the ``with`` ends."""

    def __init__(self, namespace: Namespace, program: Path, *arguments: str) -> None:
        self._process = namespace.popen(
            [str(program), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._read_line() == "ready"

    @property
    def pid(self) -> int:
        """The process that sends."""
        return self._process.pid

    def begin(self) -> None:
        """Lets it begin another round."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def end(self) -> list[int]:
        """Waits for the end of the round; what was sent in all rounds, as it says."""
        return [int(word) for word in self._read_line().split()]

    def round(self) -> list[int]:
        """Both."""
        self.begin()
        return self.end()

    def __enter__(self) -> Flood:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line: str = self._process.stdout.readline()
        return line.strip()


def rss_bytes(pid: int) -> int:
    """Memory that a process has in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def cpu_s(pid: int) -> float:
    """Processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def waited_s(pid: int) -> float:
    """How long its threads have waited for a processor."""
    told = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(text.split()[1]) for text in told) / 1e9
