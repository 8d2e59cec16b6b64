"""Whoever asks for a report gets the lock between two steps of settling."""

import threading
from collections.abc import Iterator

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
