"""How long until procnet is ready, and how much memory does it take, with CO-RE owners?

Run as root, from the top directory, in a network namespace of its own::

    unshare --net .venv/bin/python benchmarks/start.py

First the phases of ``Monitor(["lo"]).start()`` in their order, and in another fresh interpreter all
of it; then the commands as processes: ``procnet report`` until it says that it captures, ``procnet
doctor`` until it ends. Milliseconds, the least and the median of the rounds, which are interleaved.

Then the most memory that each command had in RAM, in MB: the kernel's figure (VmHWM), and what the
largest of the samples taken meanwhile was made of: ``own`` is anonymous memory, ``files`` programs
and libraries, ``capture`` the ring of packets, and ``events`` those of owner events and processes.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
ROUNDS = 11
SAMPLE_EVERY_S = 0.001
PREPARED = """
import json, os, sys, time
times = [time.perf_counter()]
def lap():
    times.append(time.perf_counter())
import procnet
lap()
"""
AT_ONCE = """
monitor = procnet.Monitor(["lo"], kernel="core")
times.append(time.perf_counter())
monitor.start()
lap()
monitor.stop()
print(json.dumps({"Monitor.start": times[3] - times[2]}))
"""
BY_PHASE = """
from procnet import ladder
from procnet.capture.tap import Tap
from procnet.ledger.ledger import Ledger
from procnet.witnesses import Witnesses, open_hooks
lap()
features = ladder.choose("core", "auto")
lap()
netns = os.stat("/proc/self/ns/net").st_ino
_, hooks = open_hooks(features, kernel="core", netns=netns)
witnesses = Witnesses(hooks, netns, Ledger())
lap()
witnesses.take(witnesses.scan())
lap()
tap = Tap(["lo"], netns)
lap()
tap.close()
witnesses.close()
names = ("import procnet", "", "  choose a rung", "  owners: load, attach", "  first look",
         "  open the capture")
spans = (later - earlier for earlier, later in zip(times, times[1:]))
print(json.dumps({name: span for name, span in zip(names, spans) if name}))
"""
REPORT = ("report", "--interface", "lo", "--kernel", "core", "--duration", "0.5")
DOCTOR = ("doctor", "--kernel", "core")
KINDS = (("socket:", "capture"), ("anon_inode:bpf-map", "events"))


def in_fresh_interpreter(code: str) -> dict[str, float]:
    output = subprocess.check_output([sys.executable, "-c", PREPARED + code], cwd=TOP)
    seconds: dict[str, float] = json.loads(output)
    return seconds


def command(arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "procnet", *arguments],
        cwd=TOP, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until_capturing() -> float:
    begun_s = time.perf_counter()
    with command(REPORT) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        span_s = time.perf_counter() - begun_s
        process.terminate()
    if not first.startswith("capturing on"):
        sys.exit(f"procnet report said: {first}")
    return span_s


def until_the_end() -> float:
    begun_s = time.perf_counter()
    with command(DOCTOR) as process:
        pass
    if process.returncode:
        sys.exit("procnet doctor could not")
    return time.perf_counter() - begun_s


def print_times() -> None:
    times_s: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        laps = in_fresh_interpreter(BY_PHASE) | in_fresh_interpreter(AT_ONCE)
        laps |= {"procnet report, to capturing": until_capturing()}
        laps |= {"procnet doctor": until_the_end()}
        for name, span_s in laps.items():
            times_s[name].append(span_s)
    print(f"{'':30}{'least':>9}{'median':>9}")
    for name, spans_s in times_s.items():
        least, median = min(spans_s) * 1000, statistics.median(spans_s) * 1000
        print(f"{name:30}{least:6.1f} ms{median:6.1f} ms")


def kinds_of_memory(pid: int) -> Counter[str]:
    """Bytes in RAM by kind. Empty for a process that has ended."""
    found: Counter[str] = Counter()
    kind = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            kind = next((kind for part, kind in KINDS if part in line), "files")
        elif line.startswith("Rss:"):
            found[kind] += int(line.split()[1]) * 1024
        elif line.startswith("Anonymous:"):
            found[kind] -= int(line.split()[1]) * 1024
            found["own"] += int(line.split()[1]) * 1024
    return found


def peak(pid: int) -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 if match else 0


def print_memory() -> None:
    print(f"\n{'':30}{'peak':>9}{'own':>9}{'files':>9}{'capture':>9}{'events':>9}")
    for arguments in (REPORT, DOCTOR):
        largest: Counter[str] = Counter()
        peak_bytes = 0
        with command(arguments) as process:
            # Not yet waited for, it has a status after its end too, without memory.
            while process.poll() is None:
                try:
                    sample = kinds_of_memory(process.pid)
                    peak_bytes = max(peak_bytes, peak(process.pid))
                except (FileNotFoundError, ProcessLookupError):
                    continue
                largest = max(largest, sample, key=Counter.total)
                time.sleep(SAMPLE_EVERY_S)
        parts = (largest[kind] for kind in ("own", "files", "capture", "events"))
        cells = "".join(f"{each / 1e6:6.1f} MB" for each in (peak_bytes, *parts))
        print(f"{f'procnet {arguments[0]}':30}{cells}")


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print_times()
    print_memory()


if __name__ == "__main__":
    main()
