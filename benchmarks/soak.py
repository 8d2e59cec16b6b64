"""Does it stay exact, and small, for as long as it runs?

    sudo .venv/bin/python -m benchmarks.soak [--minutes 60] [--connections 0]
        [--counting kernel] [--kernel auto] [--save build/benchmarks/soak.json]

A mixed load over loopback in a network namespace of its own (tests/workloads/soak.c: 200 TCP
connections a second, 500 datagrams, three streams of 2 MB/s, 50 processes of a millisecond), while
a process that embeds a Monitor takes a report each second and adds them up. Every ten seconds the
load pauses, which is a sample: what the generators moved until then, by kind of process, against
what the reports say, once they say nothing new. Printed and saved:

uncounted  payload bytes that the load moved and that no report has (yet), or that are too many
misnamed   payload bytes of which one kind of process has too many in the reports
unnamed    payload bytes for which the reports name nobody; loss says why
settled    seconds from the pause until the reports had everything, or until we gave up
RSS, CPU   of the embedding process; CPU as the share of a core since the sample before
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

TOP = Path(__file__).resolve().parents[1]
SAVE = TOP / "build" / "benchmarks" / "soak.json"
SAMPLE_EVERY_S = 10.0
PATIENCE_S = 8.0
"""Longer than the five seconds that bytes may wait for the one who takes them."""
NAME_OF_ALL = "soak-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--connections", type=int, default=0, metavar="N",
        help="go on until there were so many, however long that takes",
    )  # fmt: skip
    parser.add_argument("--counting", default="auto")
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--save", type=Path, default=SAVE, metavar="FILE")
    parser.add_argument("--embed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.embed:
        embed(options.kernel, options.counting)
    else:
        soak(options)


# -- the process that embeds a Monitor --------------------------------------------------------


def embed(kernel: str, counting: str) -> None:
    """A line of JSON each second: the sums of all reports so far."""
    import procnet

    # Sockets have no interface, and what the neighbours' move is no concern of ours.
    interfaces = None if counting == "socket" else ["lo"]
    monitor = procnet.Monitor(interfaces, kernel=kernel, counting=counting, containers="off")
    threading.Thread(target=lambda: (sys.stdin.read(), monitor.stop()), daemon=True).start()
    moved: Counter[str] = Counter()
    with monitor:
        say(ready=True, owners=monitor.features.owners, counting=monitor.features.counting)
        for report in monitor:
            rows = [(row.process.name, row) for row in report.processes]
            rows += [(reason.value, both) for reason, both in report.reasons.items()]
            for name, row in rows:
                moved[f"{name} sent"] += row.sent.payload_bytes
                moved[f"{name} received"] += row.received.payload_bytes
            loss = {name: getattr(report.loss, name) for name in report.loss.__slots__}
            say(
                moved={name: size for name, size in moved.items() if size},
                loss={name: figure for name, figure in loss.items() if figure},
                rss_bytes=int(Path("/proc/self/statm").read_text().split()[1]) * 4096,
                cpu_s=time.process_time(),
                threads=threading.active_count(),
                descriptors=len(os.listdir("/proc/self/fd")),
            )


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


# -- the load, and the comparison -------------------------------------------------------------


class Load:
    """tests/workloads/soak.c."""

    def __init__(self, namespace: Any, directory: Path) -> None:
        program = directory / "soak"
        source = TOP / "tests" / "workloads" / "soak.c"
        subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(source)], check=True)
        self._process = namespace.popen(
            [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout.readline() == "ready\n"
        self.connections = self.processes = 0

    def go(self) -> None:
        """Begins, or goes on."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def pause(self) -> dict[str, int]:
        """Stops it; "NAME sent" and "NAME received" of all kinds, payload bytes since the start."""
        self._process.stdin.write("pause\n")
        self._process.stdin.flush()
        *kinds, connections, processes = self._process.stdout.readline().split()
        self.connections, self.processes = int(connections), int(processes)
        moved = {}
        for name, sent, received in zip(kinds[::3], kinds[1::3], kinds[2::3], strict=True):
            moved[f"{name} sent"], moved[f"{name} received"] = int(sent), int(received)
        return {name: size for name, size in moved.items() if size}

    def close(self) -> None:
        """Ends it."""
        self._process.communicate()


class Errors(NamedTuple):
    """Payload bytes."""

    uncounted_bytes: int
    misnamed_bytes: int
    unnamed_bytes: int


def errors(moved: dict[str, int], told: dict[str, int]) -> Errors:
    """By how much what the reports say differs from what the load moved."""
    surplus = {name: told.get(name, 0) - moved.get(name, 0) for name in moved.keys() | told.keys()}
    sides = {name.split()[1] for name in surplus}
    named = [size for name, size in surplus.items() if name.startswith(NAME_OF_ALL)]
    return Errors(
        sum(abs(sum(surplus[name] for name in surplus if name.endswith(side))) for side in sides),
        sum(size for size in named if size > 0),
        sum(size for name, size in told.items() if not name.startswith(NAME_OF_ALL)),
    )


def soak(options: argparse.Namespace) -> None:
    sys.path.insert(0, str(TOP))
    from tests.privileged.namespace import Namespace

    with Namespace("soak") as namespace, tempfile.TemporaryDirectory() as directory:
        argv = [sys.executable, "-m", "benchmarks.soak", "--embed"]
        argv += ["--kernel", options.kernel, "--counting", options.counting]
        embedding = namespace.popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TOP
        )
        facts = json.loads(embedding.stdout.readline())
        print(f"owners: {facts['owners']}, counting: {facts['counting']}", flush=True)
        load = Load(namespace, Path(directory))
        samples: list[dict[str, Any]] = []
        started_s = time.monotonic()
        while (
            time.monotonic() - started_s < options.minutes * 60
            or load.connections < options.connections
        ):
            load.go()
            read_for(embedding, SAMPLE_EVERY_S)
            samples.append(sample(load, embedding, time.monotonic() - started_s, samples))
            show(samples[-1])
            save(options, facts, samples, load)
        load.close()
        embedding.stdin.close()
        embedding.wait(30)
    show_end(samples, load)


def read_for(embedding: Any, seconds: float) -> None:
    """Takes the reports' lines for so long."""
    due_s = time.monotonic() + seconds
    while time.monotonic() < due_s:
        embedding.stdout.readline()


def sample(load: Load, embedding: Any, at_s: float, before: list[dict[str, Any]]) -> dict[str, Any]:
    moved = load.pause()
    paused_s = time.monotonic()
    told: dict[str, Any] = {"moved": None}
    while True:
        told_before, told = told, json.loads(embedding.stdout.readline())
        settled_s = time.monotonic() - paused_s
        found = errors(moved, told["moved"])
        is_news = told["moved"] != told_before["moved"]
        # On a busy machine reports that are still late are waited for: the load pauses.
        if not found.uncounted_bytes or (settled_s > PATIENCE_S and not is_news):
            break
    last = before[-1] if before else {"at_s": 0.0, "cpu_s": 0.0}
    return {
        "at_s": round(at_s, 1),
        "moved_bytes": sum(moved.values()),
        **found._asdict(),
        "settled_s": round(settled_s, 1),
        "rss_bytes": told["rss_bytes"],
        "cpu": round((told["cpu_s"] - last["cpu_s"]) / (at_s + settled_s - last["at_s"]), 4),
        "cpu_s": told["cpu_s"],
        "threads": told["threads"],
        "descriptors": told["descriptors"],
        "loss": told["loss"],
    }


def show(taken: dict[str, Any]) -> None:
    print(
        f"{taken['at_s']:7.0f} s  moved {taken['moved_bytes'] / 1e6:8.0f} MB"
        f"  uncounted {taken['uncounted_bytes']}  misnamed {taken['misnamed_bytes']}"
        f"  unnamed {taken['unnamed_bytes']}"
        f"  settled {taken['settled_s']:.0f} s  RSS {taken['rss_bytes'] / 1e6:.1f} MB"
        f"  CPU {taken['cpu']:.1%}  {taken['loss'] or ''}",
        flush=True,
    )


def show_end(samples: list[dict[str, Any]], load: Load) -> None:
    last = samples[-1]
    settled = [each["rss_bytes"] for each in samples if each["at_s"] > 300] or [last["rss_bytes"]]
    uncounted, misnamed = (
        sum(bool(each[name]) for each in samples) for name in ("uncounted_bytes", "misnamed_bytes")
    )
    print(
        f"{load.connections} connections and {load.processes} processes in {last['at_s']:.0f} s;"
        f" of {len(samples)} samples {uncounted} with bytes uncounted, {misnamed} misnamed; in the"
        f" end {last['uncounted_bytes']} bytes uncounted, {last['unnamed_bytes']} unnamed of"
        f" {last['moved_bytes']}; after five minutes RSS {min(settled) / 1e6:.1f} to"
        f" {max(settled) / 1e6:.1f} MB, at the end {last['rss_bytes'] / 1e6:.1f}"
    )


def save(
    options: argparse.Namespace, facts: dict[str, Any], samples: list[dict[str, Any]], load: Load
) -> None:
    """After each sample, so that a run that is broken off was not for nothing."""
    options.save.parent.mkdir(parents=True, exist_ok=True)
    kept = ("at_s", "moved_bytes", *Errors._fields, "settled_s", "rss_bytes", "cpu", "threads",
            "descriptors", "loss")  # fmt: skip
    head = {
        "kernel": platform.release().split("-")[0],
        "owners": facts["owners"],
        "counting": facts["counting"],
        "connections": load.connections,
        "processes": load.processes,
    }
    lines = [json.dumps({name: each[name] for name in kept}) for each in samples]
    options.save.write_text(
        json.dumps(head)[:-1] + ', "samples": [\n' + ",\n".join(lines) + "\n]}\n"
    )


if __name__ == "__main__":
    main()
