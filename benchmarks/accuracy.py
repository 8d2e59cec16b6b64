"""Which process does every byte belong to: by procnet on each rung of this host, and by its peers?

    sudo .venv/bin/python -m benchmarks.accuracy [--only TEXT]… [--scene NAME]…
        [--rounds 1] [--save build/accuracy]

Each watches the same scenes (tests/workloads/scenarios.py) in network namespaces of its own. Their
processes count what they move, nftables counts what crosses the devices. A table is saved as text,
as JSON and as Markdown. Exit status 1: procnet named somebody wrongly, counted a byte too many or
too few or, told by the kernel, did not name all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.privileged.accuracy.judging import Share, Verdict
from tests.privileged.accuracy.playing import ALL, perform
from tests.privileged.accuracy.setting import Setting, compiled
from tests.privileged.accuracy.watchers import FRAMES, Watcher, watchers
from tests.workloads.scenarios import BEFORE, BEYOND, SCENARIOS

SAVE = Path(__file__).resolve().parents[1] / "build" / "accuracy"
ABOUT = {name: each.about for name, each in {**SCENARIOS, **BEFORE, **BEYOND}.items()}
DWELL_S, LANES = 3.0, 8
"""Those who look do it each second, on a busy machine later; and so many scenes at once."""
PASS, NOT_APPLICABLE, FAILED = "PASS", "n/a", "FAILED"
LEGEND = {
    PASS: "every byte counted once, and with the process that moved it: of the payload and on the"
    " wire; peers: at the layer that they count",
    "wrong": "bytes that have another process's name; percent are of what was moved, at the layer"
    " where it is worst",
    "unnamed": "bytes that have no name. What no process moved is named rightly by no name; nethogs"
    " does not tell whether it counted it",
    "named": "the rest. In sum: the mean of all scenes",
    "error": "bytes that were counted too often or not at all, in any direction of any flow; who"
    " tells no flows does not tell it",
    NOT_APPLICABLE: "this kernel has not what the scene takes, as trying has shown",
    FAILED: "the scene itself did not come off",
}


class Result(NamedTuple):
    """Of one watcher and one scene."""

    verdict: Verdict
    not_applicable: str
    failed: str

    @property
    def is_exact(self) -> bool:
        return all(share.is_exact for share in self.verdict.values())

    @property
    def in_words(self) -> str:
        if self.failed or self.not_applicable:
            return FAILED if self.failed else NOT_APPLICABLE
        if self.is_exact:
            return PASS
        share = max(self.verdict.values(), key=badness)
        words = [
            f"{word} {percent(size / max(share.truth, 1))}"
            for word, size in (
                ("wrong", share.wrong),
                ("unnamed", share.truth - share.named - share.wrong),
                ("error", share.error),
            )
            if size > 0
        ]
        reasons = sorted(reason for reason in share.unnamed if reason.isupper())
        return ", ".join(words) + (f" ({', '.join(reasons)})" if reasons else "")


Results = dict[str, dict[str, Result]]
"""By watcher, by scene."""


def shame(result: Result) -> tuple[object, ...]:
    return (bool(result.failed), *max(map(badness, result.verdict.values())))


def badness(share: Share) -> tuple[float, float, float]:
    truth = max(share.truth, 1)
    return share.wrong / truth, share.error / truth, (share.truth - share.named) / truth


def percent(share: float) -> str:
    """Never rounded to all or to nothing."""
    number = 100 * share
    if number in (0, 100) or 10 <= number < 99:
        return f"{number:.0f} %"
    return f"{number:.2g} %" if number < 10 else f"{number:.4g} %"


def play(
    setting: Setting, watcher: Watcher, names: Iterable[str], rounds: int
) -> dict[str, Result]:
    """Of so many rounds the worst of each scene."""
    found: dict[str, Result] = {}
    for _ in range(rounds):
        for name, result in play_once(setting, watcher, names).items():
            found[name] = max(found.get(name, result), result, key=shame)
    return {name: found[name] for name in ALL if name in found}


def play_once(setting: Setting, watcher: Watcher, names: Iterable[str]) -> dict[str, Result]:
    performance, said = perform(
        setting, lambda: watcher.watch(setting), watcher.stop, names, dwell_s=DWELL_S, lanes=LANES
    )
    judge = watcher.read(said, performance)
    return {
        name: Result(judge(scene), scene.not_applicable, scene.failed)
        for name, scene in performance.scenes.items()
    }


# -- the tables -------------------------------------------------------------------------------


def summary(results: Results) -> list[list[str]]:
    """Each scene counts the same, whatever its size, at the layer where it is worst."""
    rows = [["", "scenes", "PASS", "wrong in", "error in", "named", "wrong", "unnamed", "error"]]
    for watcher, each in results.items():
        played = [
            result for result in each.values() if result.verdict and not result.not_applicable
        ]
        shares = [max(result.verdict.values(), key=badness) for result in played]
        shares = [share for share in shares if share.truth]
        means = [
            statistics.fmean(part(share) / share.truth for share in shares)
            for part in (
                lambda share: share.named,
                lambda share: share.wrong,
                lambda share: share.truth - share.named - share.wrong,
                lambda share: share.error,
            )
        ]
        numbers = (
            len(played),
            sum(result.is_exact for result in played),
            sum(share.wrong > 0 for share in shares),
            sum(share.error > 0 for share in shares),
        )
        row = [watcher, *map(str, numbers), *(percent(mean) for mean in means)]
        if FRAMES in next(iter(played)).verdict:
            row[4] = row[-1] = "-"
        rows.append(row)
    return rows


def matrix(results: Results) -> list[list[str]]:
    names = next(iter(results.values()))
    rows = [["scene", *results]]
    for name in names:
        rows.append([name, *(each[name].in_words for each in results.values())])
    return rows


def as_text(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines) + "\n"


def as_markdown(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def host() -> str:
    kernel, python = platform.release().partition("-")[0], platform.python_version()
    return f"Linux {kernel}, {os.cpu_count()} processors, Python {python}"


def document(results: Results, absent: dict[str, str]) -> str:
    """docs/accuracy.md."""
    scenes = next(iter(results.values()))
    lacking = {name: each.not_applicable for name, each in scenes.items() if each.not_applicable}
    tables = {
        "In sum": summary(results),
        "Scene by scene": matrix(results),
        "Words": [["word", "means"], *map(list, LEGEND.items())],
        "Scenes": [["scene", "is"], *([name, ABOUT[name]] for name in scenes if ABOUT[name])],
        "Not applicable here": [["scene", "trying said"], *map(list, lacking.items())],
        "Not to be had here": [["who", "why"], *map(list, absent.items())],
    }
    parts = [
        "# Accuracy\n\nWhich process does every byte belong to, by each engine and rung, and by"
        " others?\n`make accuracy` makes this page (build/accuracy.md).",
        f"{host()}. The scenes are in [tests/workloads](../tests/workloads);\n`cable_` is between"
        " two namespaces, all else over loopback, where both ends are judged.\nHow they are judged"
        " is in [tests/privileged/accuracy](../tests/privileged/accuracy).",
    ]
    parts += [f"## {title}\n\n{as_markdown(rows)}" for title, rows in tables.items() if rows[1:]]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def saved(results: Results, absent: dict[str, str]) -> dict[str, Any]:
    return {
        "host": host(),
        "absent": absent,
        "watchers": {
            watcher: {
                name: {
                    "result": result.in_words,
                    "not_applicable": result.not_applicable,
                    "layers": {layer: share._asdict() for layer, share in result.verdict.items()},
                }
                for name, result in each.items()
            }
            for watcher, each in results.items()
        },
    }


def shortcomings(results: Results) -> list[str]:
    """Of procnet: what should not be."""
    return [
        f"{watcher}: {name}: {result.failed or result.in_words}"
        for watcher, each in results.items()
        if watcher.startswith("procnet")
        for name, result in each.items()
        if not result.not_applicable
        and (
            result.failed
            or any(share.wrong or share.error for share in result.verdict.values())
            or ("looking" not in watcher and not result.is_exact)
        )
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="who has this in the name")
    parser.add_argument("--scene", action="append", choices=ALL, help="not all of them")
    parser.add_argument("--rounds", type=int, default=1, help="the worst of each scene counts")
    parser.add_argument("--save", type=Path, default=SAVE, help="without the suffix")
    arguments = parser.parse_args()
    wanted = [
        each
        for each in watchers()
        if not arguments.only or any(part in each.name for part in arguments.only)
    ]
    results: Results = {}
    absent: dict[str, str] = {}
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        programs = compiled(Path(directory))
        for watcher in wanted:
            with Setting(programs) as setting:
                if why := watcher.absent(setting):
                    absent[watcher.name] = why
                    continue
                print(f"{watcher.name} …", flush=True)
                results[watcher.name] = play(
                    setting, watcher, arguments.scene or ALL, arguments.rounds
                )
    text = f"{as_text(matrix(results))}\n{as_text(summary(results))}"
    print(f"\n{text}\n{time.monotonic() - began_s:.0f} s")
    arguments.save.parent.mkdir(parents=True, exist_ok=True)
    arguments.save.with_suffix(".txt").write_text(text)
    arguments.save.with_suffix(".json").write_text(json.dumps(saved(results, absent), indent=1))
    arguments.save.with_suffix(".md").write_text(document(results, absent))
    short = shortcomings(results)
    print(*short, sep="\n")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
