"""A tap of which nothing is open but what it has counted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from procnet.capture.tap import Tap
from procnet.errors import LoadError
from procnet.model import FlowCount

LEFT, COUNTED, IN_KERNEL = (
    FlowCount("eth0", None, True, n, n, 0, 1, 2, False, None) for n in (3, 5, 7)
)


def test_a_drain_that_the_kernel_refuses_loses_nothing() -> None:
    answers: list[list[FlowCount] | LoadError] = [LoadError("not this time"), [IN_KERNEL]]
    counted = [[COUNTED], []]

    def drain_kernel(_most: int | None) -> list[FlowCount]:
        answer = answers.pop(0)
        if isinstance(answer, LoadError):
            raise answer
        return answer

    tap = Tap.__new__(Tap)
    tap._left = [LEFT]
    tap._dropped_before_packets = 0
    tap._kernel = SimpleNamespace(drain=drain_kernel)  # type: ignore[assignment]
    tap._listening = {
        "eth0": SimpleNamespace(  # type: ignore[dict-item]
            counter=SimpleNamespace(drain=lambda: counted.pop(0)),
            handle=SimpleNamespace(dropped_packets=lambda: 11),
        )
    }
    with pytest.raises(LoadError):
        tap.drain()
    assert tap.drain() == [LEFT, COUNTED, IN_KERNEL]
    assert tap.dropped_packets == 11
    assert tap._left == []
