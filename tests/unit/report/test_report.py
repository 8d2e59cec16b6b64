"""A Report in the hands of the program that embeds us."""

from __future__ import annotations

import copy
import dataclasses
import pickle

from procnet.model import Features, Loss, Process, Reason
from procnet.report.report import Report, build_report
from tests.unit.ledger.world import World


def nobodys_report() -> Report:
    world = World()
    world.packets(0)
    world.settle(10_000, final=True)
    return build_report(
        world.ledger.account(),
        started_ns=0,
        ended_ns=1,
        process_of=lambda process: Process(*process, name=""),
        loss=Loss(),
        features=Features("", ""),
    )


def test_it_goes_to_another_process_and_into_plain_containers() -> None:
    report = nobodys_report()
    assert report.reasons[Reason.NO_SOCKET].sent.packets == 1
    assert pickle.loads(pickle.dumps(report)) == copy.deepcopy(report) == report
    assert dataclasses.asdict(report)["totals"]["sent"]["packets"] == 1
