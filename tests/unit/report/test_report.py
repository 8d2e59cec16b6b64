"""A Report in the hands of the program that embeds us."""

from __future__ import annotations

import copy
import dataclasses
import pickle

from procnet.ledger.comparison import Comparison
from procnet.model import Features, Loss, Process, Reason, Traffic
from procnet.report.as_json import report_as_json
from procnet.report.report import NOTHING, Both, OnlyOnWire, Report, build_report
from tests.unit.ledger.world import NETNS, World


def nobodys_report(comparison: Comparison | None = None) -> Report:
    world = World()
    world.ledger.comparison = comparison
    world.packets(0)
    world.settle(10_000, final=True)
    if comparison is not None:
        comparison.finish()
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


def test_it_says_what_only_the_wire_had_if_sockets_were_counted() -> None:
    report = nobodys_report()
    assert report.only_on_wire is None
    assert report_as_json(report)["only_on_wire"] is None
    report = nobodys_report(Comparison(NETNS))
    sent = Both(Traffic(1, 129, 101), Traffic())
    assert report.only_on_wire == OnlyOnWire({"udp": sent}, NOTHING)
    assert report.totals == sent, "it is a part of what there is, not more"
    none = {"packets": 0, "wire_bytes": 0, "payload_bytes": 0}
    assert report_as_json(report)["only_on_wire"] == {
        "by_protocol": {
            "udp": {"sent": {"packets": 1, "wire_bytes": 129, "payload_bytes": 101},
                    "received": none},
        },
        "not_compared": {"sent": none, "received": none},
    }  # fmt: skip
    assert pickle.loads(pickle.dumps(report)) == report
