"""The list of scenes: each kind of traffic once, told by the processes that make it.

    python -m tests.workloads.scenarios CALLS.SO WORLD NAME…     (in the top directory)

WORLD is scene.World as JSON. At the end one JSON object: NAME to what came of it, which is
``{"truth": […]}``, ``{"not_applicable": WHY}`` or ``{"failed": TRACEBACK}``, and ``pid``, of the
process that arranged it. A truth has for each process and flow its ``place`` (the namespace),
``pid``, ``start_time_ticks``, ``protocol``, ``local``, ``remote`` ([address, port]), ``sent``,
``received`` (payload bytes). ``pid`` is null where no process moved them: the kernel did. There may
be besides

wire        [sent, received] wire bytes, where a witness that counts by ports cannot tell
by_witness  the witness tells how much it was, the process only that it was
again       of the bytes sent, how many were sent a second time
shared      several processes moved the same bytes
inside      the local endpoint as the process knows it, which others see another way

Sizes are primes and differ by actor. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple

from tests.workloads import (
    cable,
    datagrams,
    held,
    portless,
    processes,
    scene,
    sharing,
    slowly,
    streams,
    writers,
)
from tests.workloads.scene import Child, NotHere, Truth


class Scenario(NamedTuple):
    """``about``: in a few words."""

    perform: Callable[[], Truth]
    about: str


def scenarios(prefix: str, *kinds: Callable[[], Truth]) -> dict[str, Scenario]:
    return {prefix + each.__name__: Scenario(each, about(each)) for each in kinds}


def about(kind: Callable[[], Truth]) -> str:
    return (kind.__doc__ or "").partition("\n")[0].rstrip(".")


SCENARIOS = {
    **scenarios("cable_", *cable.KINDS),
    **scenarios("", *portless.KINDS),
    **scenarios("", *processes.KINDS),
    **scenarios("", *sharing.KINDS),
    **scenarios("", *writers.KINDS),
    **scenarios("", *streams.KINDS),
    **scenarios("", *datagrams.KINDS),
}
BEFORE = scenarios("", *held.BEFORE)
BEYOND = scenarios("", *held.BEYOND)
_ALL = {**SCENARIOS, **BEFORE, **BEYOND}


def played(scenario: Scenario) -> dict[str, object]:
    outcome: dict[str, object] = {"pid": os.getpid()}
    try:
        return {**outcome, "truth": scenario.perform()}
    except NotHere as why:
        return {**outcome, "not_applicable": str(why)}
    except Exception:
        return {**outcome, "failed": traceback.format_exc()}


def main() -> None:
    scene.calls = ctypes.PyDLL(sys.argv[1])
    scene.world = scene.World(**json.loads(sys.argv[2]))
    if os.environ.get("PROCNET_SLOWLY"):
        slowly.begin(int(os.environ["PROCNET_SLOWLY"]))
    told = {}
    for name in sys.argv[3:]:
        child = Child(lambda name=name: [played(_ALL[name])])
        (told[name],) = child.truth()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
