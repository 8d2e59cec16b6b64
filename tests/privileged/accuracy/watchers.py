"""Those who say which process the bytes belong to: procnet on each rung, and its peers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from procnet.ladder import COUNTING_CHOICES
from tests.privileged.accuracy.judging import (
    Evidence,
    Flow,
    Share,
    Verdict,
    at_sockets,
    flow_of,
    judge,
)
from tests.privileged.accuracy.playing import Performance, Scene
from tests.privileged.accuracy.setting import LOOPBACK, TUN, Leg, Setting
from tests.privileged.lab import DEVICE, Count
from tests.privileged.namespace import WAIT_S, LabError, wait_until
from tests.privileged.reporting import SIDES, Reporter
from tests.privileged.witness import ETHERNET_HEADER_BYTES

FRAMES = "frame_bytes"
"""The layer of who counts frames: with the link header."""
_VLAN_TAG_BYTES = 4
_REFRESH = "Refreshing:"
_KERNEL_CHOICES = ("core", "kprobe", "off")


class Watcher(Protocol):
    """``read`` makes of what ``stop`` returned a judge of scenes."""

    @property
    def name(self) -> str: ...

    def absent(self, setting: Setting) -> str:
        """Why it cannot be had here, as trying has shown; empty if it can."""

    def watch(self, setting: Setting) -> Any: ...

    def stop(self, watching: Any) -> Any: ...

    def read(self, said: Any, performance: Performance) -> Judge: ...


class Judge(Protocol):
    def __call__(self, scene: Scene) -> Verdict: ...


class Procnet(NamedTuple):
    """``--kernel`` and ``--counting``."""

    kernel: str
    counting: str

    @property
    def name(self) -> str:
        owners = "looking" if self.kernel == "off" else self.kernel
        return f"procnet {owners} + {self.counting}"

    def absent(self, setting: Setting) -> str:
        try:
            program = [sys.executable, "-m", "procnet", *self._arguments([LOOPBACK])]
            setting.host.run([*program, "--duration", "0.1"])
        except LabError as error:
            return str(error).rpartition("cannot be had here: ")[2]
        return ""

    def watch(self, setting: Setting) -> Reporter:
        return Reporter(setting.host, *self._arguments(setting.devices)[1:])

    def stop(self, watching: Reporter) -> Mapping[str, Any]:
        return watching.finish()

    def read(self, said: Mapping[str, Any], performance: Performance) -> Judge:
        evidence = Evidence(said, performance.legs, performance.host, performance.inner)
        of_sockets = self.counting == "socket"
        return lambda scene: judge(at_sockets(scene.truth) if of_sockets else scene.truth, evidence)

    def _arguments(self, devices: list[str]) -> list[str]:
        interfaces = [word for each in devices for word in ("--interface", each)]
        if self.counting == "socket":
            interfaces = []  # it counts in every namespace, and on none
        return ["report", *interfaces, "--kernel", self.kernel, "--counting", self.counting]


class Nethogs:
    """It tells frames by pid, of TCP and UDP; of a frame on loopback only that it was sent."""

    @property
    def name(self) -> str:
        told = subprocess.run(["nethogs", "-V"], capture_output=True, text=True)
        return f"nethogs {(told.stdout + told.stderr).split()[-1]}"

    def absent(self, setting: Setting) -> str:
        return "" if shutil.which("nethogs") else "not installed"

    def watch(self, setting: Setting) -> tuple[subprocess.Popen[bytes], Path]:
        descriptor, name = tempfile.mkstemp()
        process = setting.host.popen(
            ["nethogs", "-t", "-a", "-C", "-v", "2", *setting.devices],
            stdout=descriptor, stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.close(descriptor)
        output = Path(name)
        wait_until(lambda: _REFRESH in output.read_text(), "the first refresh of nethogs")
        return process, output

    def stop(self, watching: tuple[subprocess.Popen[bytes], Path]) -> str:
        process, output = watching
        # What came before the last refresh may be told at the next one.
        due = output.read_text().count(_REFRESH) + 2
        wait_until(lambda: output.read_text().count(_REFRESH) >= due, "two refreshes of nethogs")
        process.send_signal(signal.SIGINT)
        process.wait(WAIT_S)
        told = output.read_text()
        output.unlink()
        return told

    def read(self, said: str, performance: Performance) -> Judge:
        told = {
            int(pid): (float(sent), float(received))
            for pid, sent, received in re.findall(
                r"/(\d+)/\d+\t(\S+)\t(\S+)$", said.rpartition(_REFRESH)[2], re.MULTILINE
            )
        }
        return lambda scene: judge_by_pid(scene, told, performance.legs)


def judge_by_pid(
    scene: Scene, told: Mapping[int, tuple[float, float]], legs: Mapping[Leg, Count]
) -> Verdict:
    """Of who tells no flows. What is not named may be counted for nobody, or not at all.

    Headers of a flow with several users may be any user's. Six digits are told: that much of a
    figure is no error.
    """
    due: Counter[tuple[int, int]] = Counter()
    most: Counter[tuple[int, int]] = Counter()
    for flow in {flow_of(entry) for entry in scene.truth}:
        entries = [entry for entry in scene.truth if flow_of(entry) == flow and entry["pid"]]
        if not entries:
            continue
        arithmetic = [entry["wire"] for entry in entries if "wire" in entry]
        frames = map(sum, zip(*arithmetic, strict=True)) if arithmetic else frames_of(flow, legs)
        for number, (side, frame_bytes) in enumerate(zip(SIDES, frames, strict=True)):
            moved = sum(entry[side] for entry in entries)
            for entry in entries:
                who = entry["pid"], number
                share = entry[side] / moved if moved else 1 / len(entries)
                due[who] += round(frame_bytes * share)
                most[who] += entry[side] + max(frame_bytes - moved, 0)
    truth = due.total()
    named = wrong = 0
    for pid in {pid for pid, _ in due} | {scene.pid}:
        for number, size in enumerate(told.get(pid, (0.0, 0.0))):
            who = pid, number
            upper = most[who] + most[who] * 5e-6
            named += min(round(size), due[who]) if size <= upper else due[who]
            wrong += round(max(size - upper, 0))
    named = min(named, truth)
    if truth - named <= truth * 5e-6:
        named = truth
    unnamed = Counter({"not named": truth - named}) if named < truth else Counter()
    return {FRAMES: Share(truth, named, wrong, unnamed, 0)}


def frames_of(flow: Flow, legs: Mapping[Leg, Count]) -> tuple[int, int]:
    """(sent, received) bytes of frames; on loopback those that were sent."""
    sizes = []
    for source, target in ((flow.local, flow.remote), (flow.remote, flow.local)):
        size = 0
        for device, header_bytes in (
            (LOOPBACK, ETHERNET_HEADER_BYTES),
            (DEVICE, ETHERNET_HEADER_BYTES),
            ("tag0", ETHERNET_HEADER_BYTES + _VLAN_TAG_BYTES),
            (TUN, 0),
        ):
            count = legs.get(Leg(device, flow.protocol, source, target), Count(0, 0))
            if device != LOOPBACK or source == flow.local:
                size += count.wire_bytes + header_bytes * count.packets
        sizes.append(size)
    return sizes[0], sizes[1]


def watchers() -> list[Watcher]:
    """All that there may be; ``absent`` says which are not."""
    engines = [each for each in COUNTING_CHOICES if each != "auto"]
    rungs = [Procnet(kernel, counting) for kernel in _KERNEL_CHOICES for counting in engines]
    return [*rungs, Nethogs()]
