"""Processes that are gone before anybody looks: the kernel tells of each, looking of none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.privileged.lab import Namespace
from tests.privileged.reporting import Reporter
from tests.privileged.short_lived import (
    DATAGRAM_BYTES,
    SENDERS,
    Judgement,
    Sender,
    build,
    judge,
    launch,
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("workload"))


def run(namespace: Namespace, program: Path, kernel: str, number: int) -> Judgement:
    reporter = Reporter(namespace, "--interface", "lo", "--kernel", kernel)
    argv = [str(program), str(number), str(DATAGRAM_BYTES), "0"]
    port, senders = launch(namespace.argv(argv))
    judgement = judge(reporter.finish(), port, senders)
    print(f"--kernel {kernel}: {judgement}; alive for {lifetimes(senders)}")
    return judgement


def lifetimes(senders: list[Sender]) -> str:
    sorted_us = sorted(sender.lifetime_us for sender in senders)
    return f"{sorted_us[0]} to {sorted_us[-1]} us, median {sorted_us[len(senders) // 2]} us"


def test_looking_names_no_short_lived_sender_wrongly_and_counts_every_byte(
    loopback: Namespace, program: Path
) -> None:
    judgement = run(loopback, program, "off", SENDERS)
    assert (judgement.wrong, judgement.uncounted) == (0, 0)
    assert judgement.named + judgement.unnamed == SENDERS


@pytest.mark.parametrize("number", [SENDERS, 1009])
def test_the_kernel_names_every_short_lived_sender(
    loopback: Namespace, program: Path, number: int
) -> None:
    assert run(loopback, program, "core", number) == Judgement(number, 0, 0, 0)
