"""Shared, passed and reused sockets: told, all is named; looked at, nobody is named wrongly."""

from __future__ import annotations

import pytest

from tests.privileged.lab import Namespace
from tests.privileged.reporting import Reporter
from tests.privileged.truth import QUEUED, SCENARIOS, perform, share


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_kernel_names_every_user(loopback: Namespace, scenario: str) -> None:
    reporter = Reporter(loopback, "--interface", "lo", "--kernel", "core")
    truth = perform(loopback, scenario)
    found = share(reporter.finish(), truth)
    print(found)
    assert (found.wrong, found.unnamed, found.uncounted) == (0, 0, 0)


@pytest.mark.parametrize("scenario", QUEUED)
def test_bytes_in_one_queue_are_never_the_other_process_s(
    loopback: Namespace, scenario: str
) -> None:
    reporter = Reporter(loopback, "--interface", "lo", "--kernel", "core")
    truth = perform(loopback, scenario)
    found = share(reporter.finish(), truth)
    print(found)
    assert (found.wrong, found.uncounted) == (0, 0)
    assert found.unnamed <= QUEUED[scenario]


@pytest.mark.parametrize("scenario", [*SCENARIOS, *QUEUED])
def test_looking_names_nobody_wrongly(loopback: Namespace, scenario: str) -> None:
    reporter = Reporter(loopback, "--interface", "lo", "--kernel", "off")
    truth = perform(loopback, scenario)
    found = share(reporter.finish(), truth)
    print(found)
    assert (found.wrong, found.uncounted) == (0, 0)
