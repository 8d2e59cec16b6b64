"""The whole of ``procnet report`` on kprobes, on the kernel of the guest, in one capture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.privileged.namespace import Namespace, Traffic
from tests.privileged.reporting import Reporter, flows, owners, payload
from tests.privileged.short_lived import (
    SENDERS,
    Judgement,
    Sender,
    arguments,
    build,
    judge,
    launch,
)
from tests.privileged.test_report import on_the_wire, ready_pair, transfer

READY_S = 400.0
"""BCC compiles for minutes in an emulated machine."""


class Run:
    """One report over everything, and what the generators say of themselves."""

    def __init__(self, namespace: Namespace, program: Path) -> None:
        reporter = Reporter(namespace, "--interface", "lo", "--kernel", "kprobe", ready_s=READY_S)
        self.pairs: dict[tuple[str, int], tuple[Traffic, Traffic]] = {}
        for protocol in ("tcp", "udp"):
            for family in (4, 6):
                pair = ready_pair(namespace, namespace, protocol, family)
                transfer(pair)
                for end in pair:
                    end.finish()
                self.pairs[protocol, family] = pair
        self.short_lived: dict[str, tuple[int, list[Sender]]] = {
            protocol: launch(namespace.argv([str(program), *arguments(protocol, SENDERS)]))
            for protocol in ("udp", "tcp")
        }
        self.exe = str(program)
        self.report: dict[str, Any] = reporter.finish()
        self.resent_segments = namespace.resent_segments()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    program = build(tmp_path_factory.mktemp("workload"))
    with Namespace("guest") as namespace:
        yield Run(namespace, program)


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_every_short_lived_sender_is_named_and_none_wrongly(run: Run, protocol: str) -> None:
    port, senders = run.short_lived[protocol]
    judgement = judge(run.report, protocol, port, senders, run.exe)
    assert judgement == Judgement(SENDERS, 0, 0, 0, judgement.again)
    assert judgement.again <= run.resent_segments
    evidence = {row["evidence"] for row in flows(run.report, remote_port=port)}
    assert evidence == {"KERNEL_EVENT"}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_both_ends_are_named_to_the_byte(run: Run, protocol: str, family: int) -> None:
    server, client = run.pairs[protocol, family]
    up, down = on_the_wire((server, client))
    out = flows(run.report, protocol=protocol, local_port=client.port, remote_port=server.port)
    back = flows(run.report, protocol=protocol, local_port=server.port, remote_port=client.port)
    assert (owners(out), payload(out)) == ({client.pid}, (up, down))
    assert (owners(back), payload(back)) == ({server.pid}, (down, up))
    assert {row["process"]["start_time_ns"] for row in back} == {server.start_time_ns}


def test_nothing_was_lost_and_all_that_was_sent_has_an_owner(run: Run) -> None:
    loss = run.report["loss"]
    assert (loss["capture_dropped_packets"], loss["events_lost"], loss["failures"]) == (0, 0, 0)
    # Received: the launcher never reads what its children send, and they inherit its socket.
    unowned = [row for row in run.report["flows"] if row["process"] is None]
    assert [row for row in unowned if row["sent"]["payload_bytes"]] == []
    assert run.report["unattributed"]["sent"]["payload_bytes"] == 0
    assert run.report["features"]["owners"] == "kprobe"
