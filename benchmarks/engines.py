"""What does counting cost, how does that grow, and is anything lost: our engines and their peers?

    sudo unshare --net .venv/bin/python -m benchmarks.engines [--rounds 3] [--seconds 2]
        [--wait 0]
        [--only TEXT] [--save build/benchmarks/engines.json]

Traffic over loopback from a program that counts itself (engines.c, by gcc; and iperf3, if it is
there), while one of these watches: nothing, ``procnet report`` with the Python, the kernel and the
socket engine, nethogs, tcpdump to /dev/null (the floor of whoever takes packets one by one). Each
is a process of its own. They take turns, so that what else the machine does meets them alike. The
table has medians of the rounds, the file the least and the most too.

rate, of bare  thousands of packets a second (TCP: Gbit), and against nothing in the same round
CPU/packet     nanoseconds of the watching process, all its threads, from the first packet until
               SETTLE_S after the last, over the packets sent; (least-most)
nethogs/it     how many times as much nethogs takes for a packet
core           the share of one core that the process took while packets came
sender         nanoseconds that a packet costs its sender (TCP: both ends) more than with nothing:
               what they pay for the hooks, the tap and the program in the kernel
kernel         system, softirq and irq time, in percent of all cores of the machine
RSS            MB, the most that the process had until then
named          bytes or packets sent that have a process
lost           packets that were sent and are in no figure of it (TCP: payload bytes, those that
               were sent again included). nethogs tells frames with their Ethernet header, with six
               digits, in which a loss of less than 0.001 % does not show
evicted        packets that are counted, but not by flow: the table was full (sockets: or without
               their remote end, by socket)
others         cores that were busy with something else. Doubt the row if that is not 0.0: also
               because owners are told of the sockets of the whole machine, which costs procnet time
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

TOP = Path(__file__).resolve().parents[1]
SAVE = TOP / "build" / "benchmarks" / "engines.json"
IPERF_PORT = 5201
SETTLE_S = 1.3
"""Longer than the second between two looks of ours, or two refreshes of nethogs."""
PATIENCE_S = 60.0
BUSY_CORES = 0.3
"""Where other processes take more than that, a figure says nothing about a target."""
IP_UDP_BYTES, ETHERNET_BYTES = 28, 14
SNAPLEN_BYTES, BUFFER_KIB = 256, 4096  # as procnet has it

Measured = dict[str, Any]


class Traffic(NamedTuple):
    """``rate``: packets a second, 0 for as many as go."""

    name: str
    kind: str = "udp"
    payload_bytes: int = 64
    flows: int = 1
    rate: int = 0
    seconds: float = 0.0


class Said(NamedTuple):
    """What a watcher counted of what was sent. None: it does not say."""

    packets: float | None = None
    payload_bytes: float | None = None
    dropped_packets: int | None = None
    evicted_packets: int | None = None
    named_share: float | None = None


class Way(NamedTuple):
    name: str
    argv: list[str]
    ready: str = ""
    read: Callable[[str, Traffic], Said] = lambda output, traffic: Said()


IPERF = Traffic("iperf3 -u -l 64 -b 0, 10 s", "iperf3", seconds=10)
TRAFFICS = (
    Traffic("UDP 64 B, 1 flow, 10k/s", rate=10_000),
    Traffic("UDP 64 B, 1 flow, 50k/s", rate=50_000),
    Traffic("UDP 64 B, 1 flow, flood"),
    Traffic("UDP 1400 B, 1 flow, flood", payload_bytes=1400),
    Traffic("UDP 64 B, 1k flows, 50k/s", flows=1_000, rate=50_000),
    Traffic("UDP 64 B, 100k flows, 50k/s", flows=100_000, rate=50_000),
    Traffic("UDP 64 B, 100k flows, flood", flows=100_000),
    Traffic("TCP bulk", "tcp"),
    IPERF,
)


# -- who watches ------------------------------------------------------------------------------


def read_procnet(output: str, traffic: Traffic) -> Said:
    report = json.loads(output[output.index('{"schema"') :])
    sent, named = report["totals"]["sent"], report["attributed"]["sent"]
    packets, payload_bytes = sent["packets"], sent["payload_bytes"]
    reasons = report["unattributed"]["reasons"]
    if traffic.kind == "iperf3":
        # Without what its two ends tell each other: TCP, and a datagram each to begin with.
        flows = [flow for flow in report["flows"] if flow["protocol"] == "udp"]
        packets = sum(flow["sent"]["packets"] for flow in flows) - 2
        payload_bytes = sum(flow["sent"]["payload_bytes"] for flow in flows) - 8
    return Said(
        packets,
        payload_bytes,
        report["loss"]["capture_dropped_packets"],
        reasons.get("EVICTED", {"sent": {"packets": 0}})["sent"]["packets"],
        named["packets"] / max(sent["packets"], 1),
    )


def read_sockets(output: str, traffic: Traffic) -> Said:
    """Of this namespace: at sockets it is counted in all of them."""
    report = json.loads(output[output.index('{"schema"') :])
    here = Path("/proc/self/ns/net").stat().st_ino
    flows = report["flows"]
    for flow in (flow for flow in flows if flow["netns"] != here):
        for place in ("totals", "attributed") if flow["process"] else ("totals",):
            for figure, moved in flow["sent"].items():
                report[place]["sent"][figure] -= moved
    report["flows"] = [flow for flow in flows if flow["netns"] == here]
    said = read_procnet(json.dumps(report), traffic)
    return said._replace(evicted_packets=report["loss"]["unsplit_packets"] + said.evicted_packets)


def read_nethogs(output: str, traffic: Traffic) -> Said:
    """Of its last refresh. A loopback frame is sent to it, and not received."""
    lines = output.rpartition("Refreshing:")[2].splitlines()
    found = [line.split("\t") for line in lines if line.count("\t") == 2]
    all_bytes = sum(float(sent) for _, sent, _ in found)
    named_bytes = sum(float(sent) for who, sent, _ in found if not who.startswith("unknown"))
    frame_bytes = traffic.payload_bytes + IP_UDP_BYTES + ETHERNET_BYTES
    return Said(
        # Of TCP it cannot be said how much of it is headers.
        packets=None if traffic.kind == "tcp" else all_bytes / frame_bytes,
        named_share=named_bytes / max(all_bytes, 1),
    )


def read_tcpdump(output: str, traffic: Traffic) -> Said:
    captured, dropped = (
        int(re.findall(rf"(\d+) packets? {what}", output)[-1])
        for what in ("captured", "dropped by kernel")
    )
    return Said(packets=None if traffic.kind == "tcp" else captured, dropped_packets=dropped)


def ways() -> list[Way]:
    at_sockets = [sys.executable, "-m", "procnet", "report", "--format", "json"]
    report = [*at_sockets, "--interface", "lo"]
    nethogs = ["nethogs", "-t", "-a", "-C", "-v", "2", "lo"]
    tcpdump = ["tcpdump", "-i", "lo", "-n", "-Z", "root", "-w", "/dev/null"]
    tcpdump += ["-s", str(SNAPLEN_BYTES), "-B", str(BUFFER_KIB)]
    found = [
        Way("nothing", []),
        Way("python", [*report, "--counting", "python"], "capturing on", read_procnet),
        Way("kernel", [*report, "--counting", "kernel"], "capturing on", read_procnet),
        Way("socket", [*at_sockets, "--counting", "socket"], "capturing on", read_sockets),
        Way("nethogs", nethogs, "Refreshing:", read_nethogs),
        Way("tcpdump", tcpdump, "listening on", read_tcpdump),
    ]
    missing = [way for way in found if way.argv and not shutil.which(way.argv[0])]
    for way in missing:
        print(f"without {way.name}: it is not installed")
    return [way for way in found if way not in missing]


@contextmanager
def watching(way: Way, directory: Path) -> Iterator[subprocess.Popen[bytes] | None]:
    """Runs it, from when it says that it captures."""
    if not way.argv:
        yield None
        return
    with (directory / "output").open("wb") as output, (directory / "errors").open("wb") as errors:
        process = subprocess.Popen(way.argv, cwd=TOP, stdout=output, stderr=errors)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while way.ready not in all_said(directory):
            if process.poll() is not None or time.monotonic() > deadline_s:
                sys.exit(f"{way.name} did not begin: {all_said(directory)}")
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def all_said(directory: Path) -> str:
    return (directory / "errors").read_text() + (directory / "output").read_text()


def end(process: subprocess.Popen[bytes], directory: Path) -> str:
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE_S)
    return all_said(directory)


# -- the traffic ------------------------------------------------------------------------------


def run_traffic(traffic: Traffic, generator: Path, seconds: float) -> dict[str, float]:
    """Runs it to its end: packets, payload_bytes, retransmitted_bytes, seconds, cpu_s."""
    seconds = traffic.seconds or seconds
    if traffic.kind == "iperf3":
        return run_iperf3(traffic, seconds)
    argv = [str(generator), traffic.kind, str(seconds)]
    if traffic.kind == "udp":
        argv += [str(traffic.payload_bytes), str(traffic.flows), str(traffic.rate)]
    moved: dict[str, float] = json.loads(subprocess.check_output(argv, timeout=PATIENCE_S))
    return moved


def run_iperf3(traffic: Traffic, seconds: float) -> dict[str, float]:
    server = subprocess.Popen(
        ["iperf3", "--server", "--one-off", "--port", str(IPERF_PORT)], stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    try:
        time.sleep(0.5)  # it does not say when it listens: not to a pipe
        argv = f"iperf3 -c 127.0.0.1 -p {IPERF_PORT} -u -b 0 -J -l {traffic.payload_bytes}"
        command = [*argv.split(), "-t", str(seconds)]
        before = os.times()
        output = subprocess.check_output(command, timeout=PATIENCE_S)
        server.communicate(timeout=PATIENCE_S)
        after = os.times()
        stream = json.loads(output)["end"]["streams"][0]["udp"]
    finally:
        server.kill()
        server.communicate()
    sent_packets = stream["bytes"] // traffic.payload_bytes
    return {
        "packets": sent_packets,
        "payload_bytes": stream["bytes"],
        "retransmitted_bytes": 0,
        "seconds": stream["seconds"],
        "cpu_s": after.children_user + after.children_system
        - before.children_user - before.children_system,
    }  # fmt: skip


# -- one measurement --------------------------------------------------------------------------


def process_cpu_s(pid: int) -> float:
    """Of all its threads, also of those that have ended."""
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3) of any process


def machine_s() -> tuple[float, float]:
    """(busy, in the kernel): seconds of all cores since the start."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    seconds = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
    user, nice, system, _, _, irq, softirq, _ = seconds
    return user + nice + system + irq + softirq, system + irq + softirq


def other_cores_now() -> float:
    before_s, began_s = machine_s()[0], time.monotonic()
    time.sleep(0.5)
    return (machine_s()[0] - before_s) / (time.monotonic() - began_s)


def peak_rss_bytes(pid: int) -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 if match else 0


def measure(way: Way, traffic: Traffic, generator: Path, seconds: float) -> Measured:
    cpu_s = during_s = rss_bytes = 0.0
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name, watching(way, Path(name)) as process:
        (busy_s, kernel_s), began_s = machine_s(), time.monotonic()
        started_s = process_cpu_s(process.pid) if process else 0.0
        moved = run_traffic(traffic, generator, seconds)
        (now_busy_s, now_kernel_s), sent_s = machine_s(), time.monotonic() - began_s
        said = Said()
        if process:
            during_s = process_cpu_s(process.pid) - started_s
            time.sleep(SETTLE_S)
            cpu_s = process_cpu_s(process.pid) - started_s
            rss_bytes = peak_rss_bytes(process.pid)
            said = way.read(end(process, Path(name)), traffic)
    sender_cpu_s = moved.pop("cpu_s")
    others_s = now_busy_s - busy_s - sender_cpu_s - during_s
    return {
        **moved,
        "said": said,
        "cpu_s": cpu_s,
        "cores": during_s / sent_s,
        "sender_cpu_s": sender_cpu_s,
        "rss_bytes": rss_bytes,
        "kernel_share": (now_kernel_s - kernel_s) / sent_s / (os.cpu_count() or 1),
        "other_cores": max(0.0, others_s / sent_s),
        "load_average": load_average,
    }


# -- many, and what they say ------------------------------------------------------------------


def figures(traffic: Traffic, run: Measured, bare: Measured) -> dict[str, float | None]:
    """What one run says, compared with nothing watching in the same round."""
    packets, said = run["packets"], run["said"]
    sent, counted = packets, said.packets
    if traffic.kind == "tcp":
        sent, counted = run["payload_bytes"] + run["retransmitted_bytes"], said.payload_bytes
    speed, bare_speed = (each["payload_bytes"] / each["seconds"] for each in (run, bare))
    sender_s, bare_sender_s = (each["sender_cpu_s"] / each["packets"] for each in (run, bare))
    return {
        "packets_per_s": packets / run["seconds"],
        "payload_bits_per_s": speed * 8,
        "of_bare": speed / bare_speed,
        "cpu_ns_per_packet": run["cpu_s"] / packets * 1e9,
        "cpu_cores": run["cores"],
        "sender_ns_added": (sender_s - bare_sender_s) * 1e9,
        "kernel_share": run["kernel_share"],
        "rss_bytes": run["rss_bytes"],
        "named_share": said.named_share,
        "lost_share": None if counted is None else 1 - counted / sent,
        "lost": None if counted is None else sent - counted,
        "dropped_packets": said.dropped_packets,
        "evicted_packets": said.evicted_packets,
        "other_cores": run["other_cores"],
        "load_average": run["load_average"],
    }


def run_rounds(
    traffics: list[Traffic], found: list[Way], generator: Path, options: argparse.Namespace
) -> dict[tuple[Traffic, str], list[dict[str, float | None]]]:
    results: dict[tuple[Traffic, str], list[dict[str, float | None]]] = {}
    for number in range(options.rounds):
        for traffic in traffics:
            if traffic is IPERF and number:
                continue  # long enough by itself
            shift = number % len(found)
            deadline_s = time.monotonic() + options.wait
            while True:
                while other_cores_now() > BUSY_CORES and time.monotonic() < deadline_s:
                    pass
                runs = {
                    way.name: measure(way, traffic, generator, options.seconds)
                    for way in found[shift:] + found[:shift]
                }
                busiest = max(run["other_cores"] for run in runs.values())
                if busiest <= BUSY_CORES or time.monotonic() >= deadline_s:
                    break
            for way in found:
                each = figures(traffic, runs[way.name], runs["nothing"])
                if "nethogs" in runs and way.argv:
                    theirs, ours = runs["nethogs"], runs[way.name]
                    each["nethogs_times"] = (theirs["cpu_s"] / theirs["packets"]) / (
                        ours["cpu_s"] / ours["packets"]
                    )
                results.setdefault((traffic, way.name), []).append(each)
            print(f"round {number + 1}: {traffic.name}", file=sys.stderr, flush=True)
    return results


def spread(runs: list[dict[str, float | None]]) -> dict[str, list[float]]:
    """[least, median, most] of each figure that there is."""
    found = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        known = [value for value in values if value is not None]
        if known:
            found[name] = [min(known), statistics.median(known), max(known)]
    return found


OF_A_WATCHER = ("cpu_ns_per_packet", "cpu_cores", "rss_bytes", "sender_ns_added")
LINE = "{:<30}{:<9}{:>7}{:>6}{:>22}{:>9}{:>8}{:>8}{:>7}{:>6}{:>8}{:>9}{:>9}{:>7}{:>6}"
HEAD = LINE.format(
    "traffic", "watched", "rate", "bare", "CPU/packet", "nethogs", "core", "sender", "kernel",
    "RSS", "named", "lost", "evicted", "others", "load",
)  # fmt: skip


def row(traffic: Traffic, way: str, found: dict[str, list[float]]) -> str:
    def cell(name: str, form: str, factor: float = 1.0) -> str:
        if name not in found or (way == "nothing" and name in OF_A_WATCHER):
            return "-"
        return form.format(found[name][1] * factor, *(found[name][i] * factor for i in (0, 2)))

    speed = ("payload_bits_per_s", "{:.1f}G", 1e-9) if traffic.kind == "tcp" else (
        "packets_per_s", "{:.0f}k", 1e-3)  # fmt: skip
    cells = (
        traffic.name,
        way,
        cell(*speed),
        cell("of_bare", "{:.0f}%", 100),
        cell("cpu_ns_per_packet", "{:.0f} ({:.0f}-{:.0f})"),
        cell("nethogs_times", "{:.1f}"),
        cell("cpu_cores", "{:.1f}%", 100),
        cell("sender_ns_added", "{:+.0f}"),
        cell("kernel_share", "{:.0f}%", 100),
        cell("rss_bytes", "{:.0f}", 1e-6),
        cell("named_share", "{:.1f}%", 100),
        cell("lost_share", "{:.3f}%", 100),
        cell("evicted_packets", "{:.0f}"),
        cell("other_cores", "{:.1f}"),
        cell("load_average", "{:.1f}"),
    )
    return LINE.format(*cells)


class Target(NamedTuple):
    """Of the kernel engine."""

    traffic: str
    figure: str
    least: float
    most: float
    words: str


TARGETS = (
    Target("UDP 64 B, 1 flow, flood", "cpu_cores", 0, 0.01, "at most 1 % of a core"),
    Target("UDP 64 B, 1 flow, flood", "nethogs_times", 10, 1e9, "10 times under nethogs"),
    Target("UDP 64 B, 1 flow, flood", "lost", 0, 0, "nothing lost"),
    Target(IPERF.name, "cpu_cores", 0, 0.01, "at most 1 % of a core"),
    Target(IPERF.name, "lost", 0, 0, "nothing lost"),
    Target("TCP bulk", "of_bare", 0.95, 1e9, "at least 95 % of the throughput"),
    Target("TCP bulk", "lost", 0, 0, "nothing lost"),
)


def show(results: dict[tuple[Traffic, str], dict[str, list[float]]]) -> None:
    print(HEAD)
    for (traffic, way), found in results.items():
        print(row(traffic, way, found))
    print(
        "\nthe kernel engine's targets, by the median (losses: by the worst); least, median, most"
    )
    kernel = {traffic.name: found for (traffic, way), found in results.items() if way == "kernel"}
    for name, figure, least, most, words in TARGETS:
        if figure in kernel.get(name, {}):
            low, middle, high = kernel[name][figure]
            worst = max(low, high, key=abs) if figure == "lost" else middle
            verdict = "ok" if least <= worst <= most else "MISSED"
            if figure != "lost" and kernel[name]["other_cores"][1] > BUSY_CORES:
                verdict = "? others were busy"
            print(f"{name:<30}{words:<34}{low:<10.4g}{middle:<10.4g}{high:<10.4g}{verdict}")


def version_of(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    return (done.stdout + done.stderr).partition("\n")[0].strip()


def machine() -> dict[str, object]:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    programs = (("nethogs", "-V"), ("tcpdump", "--version"), ("iperf3", "--version"))
    return {
        "kernel": platform.release().partition("-")[0],
        "cpu": found[1] if found else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "programs": [version_of(*argv) for argv in programs if shutil.which(argv[0])],
    }


def save(
    path: Path,
    results: dict[tuple[Traffic, str], dict[str, list[float]]],
    options: argparse.Namespace,
) -> None:
    """One line for each row, so that two files can be compared."""
    rows = [
        {"traffic": traffic.name, **traffic._asdict(), "watched_by": way, "figures": found}
        for (traffic, way), found in results.items()
    ]
    rounded = (re.sub(r"(\d\.\d{4})\d+", r"\1", json.dumps(each)) for each in rows)
    head = {"machine": machine(), "rounds": options.rounds, "seconds": options.seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head)[:-1] + ', "results": [\n' + ",\n".join(rounded) + "\n]}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of traffic (not of iperf3)")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS",
        help="each time so long for other processes to be quiet, and once more if they were not",
    )  # fmt: skip
    parser.add_argument("--only", default="", help="traffic whose name has this in it")
    parser.add_argument("--save", type=Path, default=SAVE, metavar="FILE")
    options = parser.parse_args()
    if len(Path("/proc/net/route").read_text().splitlines()) > 1:
        sys.exit("run it in a network namespace of its own: unshare --net")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    traffics = [traffic for traffic in TRAFFICS if options.only in traffic.name]
    if not shutil.which("iperf3"):
        print("without iperf3: it is not installed")
        traffics = [traffic for traffic in traffics if traffic.kind != "iperf3"]
    with tempfile.TemporaryDirectory() as directory:
        generator = Path(directory, "engines")
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", generator, source], check=True)
        runs = run_rounds(traffics, ways(), generator, options)
    results = {place: spread(found) for place, found in runs.items()}
    save(options.save, results, options)
    show(results)


if __name__ == "__main__":
    main()
