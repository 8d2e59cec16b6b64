"""Processes that are gone before anybody looks: the kernel tells of each, looking of none.

PROCNET_RUNS=20 runs the long ones as often, one after the other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.privileged.lab import Namespace
from tests.privileged.reporting import Reporter
from tests.privileged.short_lived import (
    SENDERS,
    Judgement,
    Sender,
    arguments,
    build,
    judge,
    launch,
)

RUNS = int(os.environ.get("PROCNET_RUNS", "1"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("workload"))


def run(namespace: Namespace, program: Path, kernel: str, protocol: str, number: int) -> Judgement:
    reporter = Reporter(namespace, "--interface", "lo", "--kernel", kernel)
    port, senders = launch(namespace.argv([str(program), *arguments(protocol, number)]))
    # Whoever is only looked for may be gone before the row is full.
    exe = "" if kernel == "off" else str(program)
    judgement = judge(reporter.finish(), protocol, port, senders, exe)
    assert judgement.again <= namespace.resent_segments()
    print(f"--kernel {kernel}, {protocol}: {judgement}; alive for {lifetimes(senders)}")
    return judgement


def lifetimes(senders: list[Sender]) -> str:
    sorted_us = sorted(sender.lifetime_us for sender in senders)
    return f"{sorted_us[0]} to {sorted_us[-1]} us, median {sorted_us[len(senders) // 2]} us"


def test_looking_names_no_short_lived_sender_wrongly_and_counts_every_byte(
    loopback: Namespace, program: Path
) -> None:
    judgement = run(loopback, program, "off", "udp", SENDERS)
    assert (judgement.wrong, judgement.uncounted) == (0, 0)
    assert judgement.named + judgement.unnamed == SENDERS


@pytest.mark.parametrize("number", [SENDERS, 1009])
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_the_kernel_names_every_short_lived_sender(
    loopback: Namespace, program: Path, protocol: str, number: int
) -> None:
    for _ in range(RUNS if number > SENDERS else 1):
        judgement = run(loopback, program, "core", protocol, number)
        assert judgement == Judgement(number, 0, 0, 0, judgement.again)
