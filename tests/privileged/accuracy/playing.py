"""Plays the scenes while somebody watches."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from tests.privileged.accuracy.judging import Truth, settled
from tests.privileged.accuracy.setting import Leg, Setting
from tests.privileged.lab import Count
from tests.privileged.namespace import TOP
from tests.workloads import held
from tests.workloads.scenarios import BEFORE, BEYOND, SCENARIOS

_PATIENCE_S = 600.0
"""An emulated machine may be that slow."""
_BYSTANDER = held.bystander.__name__
ALL = (*SCENARIOS, *(name for name in BEFORE if name != _BYSTANDER), *BEYOND)

Watcher = TypeVar("Watcher")
Said = TypeVar("Said")


class Scene(NamedTuple):
    """What came of one. ``truth`` is of the host alone."""

    truth: Truth
    not_applicable: str
    failed: str
    pid: int
    """Of the process that arranged it."""


class Performance(NamedTuple):
    """``legs``: what the second witness saw while somebody watched."""

    scenes: dict[str, Scene]
    legs: dict[Leg, Count]
    bystander_pid: int
    host: int
    """The inode of its namespace, and of the one behind it."""
    inner: int


class Players:
    """The processes of some scenes, one scene after the other, from their start in the host."""

    def __init__(self, setting: Setting, dwell_s: float, *names: str) -> None:
        program = [sys.executable, "-S", "-E", "-m", "tests.workloads.scenarios"]
        self._process = setting.host.popen(
            [*program, str(setting.programs.calls), setting.world(dwell_s), *names],
            cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_until_ready(self) -> None:
        assert self._process.stdout.readline() == "ready\n"

    def scenes(self) -> dict[str, Scene]:
        """Lets those go that wait; what all say at their end."""
        output, _ = self._process.communicate("\n", timeout=_PATIENCE_S)
        assert self._process.returncode == 0, "the players died"
        return {
            name: Scene(
                settled(told.get("truth", [])),
                told.get("not_applicable", ""),
                told.get("failed", ""),
                told["pid"],
            )
            for name, told in json.loads(output).items()
        }


def perform(
    setting: Setting,
    watch: Callable[[], Watcher],
    stop: Callable[[Watcher], Said],
    names: Iterable[str] = ALL,
    *,
    dwell_s: float = 0.0,
    lanes: int = 1,
) -> tuple[Performance, Said]:
    """Some scenes, what was seen of them, and what the watcher said.

    So many at the same time as there are ``lanes``.
    """
    wanted = set(names)
    bystander = Players(setting, dwell_s, _BYSTANDER)
    before = [Players(setting, dwell_s, name) for name in BEFORE if name in wanted]
    for each in (bystander, *before):
        each.wait_until_ready()
    unwatched = setting.settle()
    watcher = watch()
    beyond = [Players(setting, dwell_s, name) for name in BEYOND if name in wanted]
    for each in beyond:
        each.wait_until_ready()
    scenes: dict[str, Scene] = {}
    for each in before:
        scenes |= each.scenes()
    played = [name for name in SCENARIOS if name in wanted]
    for each in [Players(setting, dwell_s, *played[lane::lanes]) for lane in range(lanes)]:
        scenes |= each.scenes()
    legs = setting.settle()
    said = stop(watcher)
    for each in beyond:
        scenes |= each.scenes()
    (watched,) = bystander.scenes().values()
    seen = {
        leg: Count(count.packets - before.packets, count.wire_bytes - before.wire_bytes)
        for leg, count in legs.items()
        for before in [unwatched.get(leg, Count(0, 0))]
    }
    inodes = setting.host.inode, setting.inner.inode
    return Performance(scenes, seen, watched.truth[0]["pid"], *inodes), said
