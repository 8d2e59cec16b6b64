"""Whoever asks for a report gets the lock between two steps of settling."""

import threading
from collections.abc import Iterator

import pytest

from procnet.model import FlowCount, Reason
from procnet.monitor import Monitor


def test_the_lock_is_given_up_between_two_steps() -> None:
    monitor = Monitor(["lo"])
    taken = threading.Event()

    def ask() -> None:
        with monitor._lock:
            taken.set()

    asking = threading.Thread(target=ask)
    held: list[bool] = []

    def steps() -> Iterator[bool]:
        asking.start()
        # Far more steps than a thread needs to wake up.
        for _ in range(5003):
            held.append(monitor._lock.locked())
            if taken.is_set():
                return
            yield True

    monitor._step(steps())
    asking.join()
    assert all(held), "each step is made with the lock held"
    assert 1 < len(held) < 5003, "it was taken between two steps, not after the last"


class FullTap:
    """A tap that always has something."""

    is_due = True

    def __init__(self, counts_in_kernel: bool) -> None:
        self.counts_in_kernel = counts_in_kernel
        self.drains = 0

    def drain(self) -> list[FlowCount]:
        self.drains += 1
        return [FlowCount("lo", None, True, 1, 28, 0, 0, 0, False, Reason.NOT_IP)] * 65_536


@pytest.mark.parametrize(("counts_in_kernel", "most"), [(True, 4), (False, 23)])
def test_a_flood_waits_in_the_kernel_and_not_here(counts_in_kernel: bool, most: int) -> None:
    monitor = Monitor(["lo"])
    tap = FullTap(counts_in_kernel)

    def hand_over(*, last: bool = False) -> None:
        monitor._hand_over(tap, last=last)  # type: ignore[arg-type]

    for _ in range(23):
        hand_over()
    assert tap.drains == most
    hand_over(last=True)
    assert tap.drains == most + 1
    monitor._handed_over.clear()
    hand_over()
    assert tap.drains == most + 2
    tap.is_due = False
    hand_over()
    assert tap.drains == most + 2
