"""Draws what engines.py and soak.py have measured.

    .venv/bin/python -m benchmarks.plot [RESULTS [PNG]]
    .venv/bin/python -m benchmarks.plot benchmarks/results/soak.json docs/soak.png

Without arguments from benchmarks/results/engines.json to docs/engines.png. Needs matplotlib
(python3-matplotlib). Of the engines CPU for a packet against the rate, and against the flows:
points are medians, bars go from the least to the most of the rounds. Of a soak memory and error
against time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[1]
RESULTS, PICTURE = TOP / "benchmarks" / "results" / "engines.json", TOP / "docs" / "engines.png"
COLORS = {
    "kernel": "#1b7837",
    "socket": "#762a83",
    "python": "#5aae61",
    "nethogs": "#d6604d",
    "tcpdump": "#878787",
}
NAMES = {
    "kernel": "procnet, kernel engine",
    "socket": "procnet, at the sockets",
    "python": "procnet, Python engine",
}


def main() -> None:
    results, picture = (Path(each) for each in (*sys.argv[1:], RESULTS, PICTURE)[:2])
    if len(sys.argv) == 2:
        picture = PICTURE
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        sys.exit("no picture: matplotlib (python3-matplotlib) is not installed")
    saved = json.loads(results.read_text())
    figure = draw_soak(pyplot, saved) if "samples" in saved else draw_engines(pyplot, saved)
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    print(f"drawn: {picture}")


def draw_engines(pyplot: Any, saved: dict[str, Any]) -> Any:
    figure, (by_rate, by_flows) = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    small = [row for row in saved["results"] if row["kind"] == "udp" and row["payload_bytes"] == 64]
    draw(by_rate, [row for row in small if row["flows"] == 1], "packets_per_s")
    draw(by_flows, [row for row in small if row["rate"] == 50_000], "flows")
    by_rate.set(
        xlabel="64-byte datagrams a second, one flow", ylabel="CPU of the process, ns/packet"
    )
    by_flows.set(xlabel="flows, at 50 000 datagrams a second")
    by_rate.legend(frameon=False, fontsize=8)
    return figure


def draw_soak(pyplot: Any, saved: dict[str, Any]) -> Any:
    figure, (memory, error) = pyplot.subplots(2, 1, figsize=(7, 3.8), sharex=True)
    samples = saved["samples"]
    minutes = [sample["at_s"] / 60 for sample in samples]
    memory.plot(minutes, [sample["rss_bytes"] / 1e6 for sample in samples], color=COLORS["kernel"])
    memory.set(ylabel="RSS, MB", ylim=(0, None))
    most_bytes = 1000
    for name, color in (("uncounted", "#d6604d"), ("misnamed", "#762a83"), ("unnamed", "#878787")):
        axis = [sample[f"{name}_bytes"] for sample in samples]
        error.plot(minutes, axis, color=color, label=name)
        most_bytes = max(most_bytes, *axis)
    error.set(xlabel="minutes", ylabel="bytes", yscale="symlog", ylim=(0, 2 * most_bytes))
    error.legend(frameon=False, fontsize=8)
    for axes in (memory, error):
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set(xlim=(0, max(minutes)))
    return figure


def draw(axes: Any, rows: list[dict[str, Any]], against: str) -> None:
    axes.set(xscale="log", yscale="log")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    for way, color in COLORS.items():
        points = []
        for row in rows:
            if row["watched_by"] == way:
                least, middle, most = row["figures"]["cpu_ns_per_packet"]
                at = row["flows"] if against == "flows" else row["figures"][against][1]
                points.append((at, middle, middle - least, most - middle))
        if points:
            at, middle, under, over = zip(*sorted(points), strict=True)
            axes.errorbar(
                at, middle, yerr=(under, over), color=color, marker="o", markersize=4,
                linewidth=1.5, capsize=3, label=NAMES.get(way, way),
            )  # fmt: skip


if __name__ == "__main__":
    main()
