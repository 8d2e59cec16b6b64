"""What looking at /proc can and cannot say of processes that are gone before anybody looks."""

from __future__ import annotations

from pathlib import Path

from tests.privileged.lab import Namespace
from tests.privileged.reporting import Reporter
from tests.privileged.short_lived import DATAGRAM_BYTES, SENDERS, build, judge, launch


def test_looking_names_no_short_lived_sender_wrongly_and_counts_every_byte(
    loopback: Namespace, tmp_path: Path, record_property
) -> None:
    program = build(tmp_path)
    reporter = Reporter(loopback, "--interface", "lo", "--kernel", "off")
    port, senders = launch(loopback.argv([str(program), str(SENDERS), str(DATAGRAM_BYTES), "0"]))
    judgement = judge(reporter.finish(), port, senders)
    lifetimes = sorted(sender.lifetime_us for sender in senders)
    print(f"lifetime median {lifetimes[SENDERS // 2]} us; {judgement}")
    record_property("judgement", str(judgement))
    assert judgement.wrong == 0
    assert judgement.uncounted == 0
    assert judgement.named + judgement.unnamed == SENDERS
