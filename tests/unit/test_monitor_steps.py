"""Whoever asks for a report gets the lock between two steps of settling."""

import threading
from collections.abc import Iterator

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
    counts_in_kernel = True
    holds_back = False

    def __init__(self) -> None:
        self.asked_for: list[int | None] = []

    def drain(self, most: int | None = None) -> list[FlowCount]:
        self.asked_for.append(most)
        number = 20_011 if most is None else min(most, 20_011)
        return [FlowCount("lo", None, True, 1, 28, 0, 0, 0, False, Reason.NOT_IP)] * number


def test_a_flood_waits_where_it_is_small() -> None:
    monitor = Monitor(["lo"])
    tap = FullTap()

    def hand_over(*, last: bool = False) -> None:
        monitor._hand_over(tap, last=last)  # type: ignore[arg-type]

    for _ in range(4):
        hand_over()
    assert tap.asked_for == [32_768, 12_757, 0, 0]
    hand_over(last=True)
    assert tap.asked_for[4:] == [None]
    monitor._handed_over.clear()
    hand_over()
    assert tap.asked_for[5:] == [32_768]
    tap.is_due = False
    hand_over()
    assert len(tap.asked_for) == 6
