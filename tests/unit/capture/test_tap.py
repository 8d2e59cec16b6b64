"""A tap of which nothing is open but what it has counted."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from procnet.capture.tap import Tap
from procnet.errors import LoadError
from procnet.model import FlowCount

LEFT, COUNTED, IN_KERNEL = (
    FlowCount("eth0", None, True, n, n, 0, 1, 2, False, None) for n in (3, 5, 7)
)


def counting_tap(
    drain_kernel: Callable[[int | None], list[FlowCount]], drain_counter: Callable[[], object]
) -> Tap:
    tap = Tap.__new__(Tap)
    tap._left = []
    tap._dropped_before_packets = 0
    tap._kernel = SimpleNamespace(drain=drain_kernel)  # type: ignore[assignment]
    tap._listening = {
        "eth0": SimpleNamespace(  # type: ignore[dict-item]
            counter=SimpleNamespace(drain=drain_counter),
            handle=SimpleNamespace(dropped_packets=lambda: 11),
        )
    }
    return tap


def test_a_drain_that_the_kernel_refuses_loses_nothing() -> None:
    answers: list[list[FlowCount] | LoadError] = [LoadError("not this time"), [IN_KERNEL]]
    counted = [[LEFT, COUNTED], []]

    def drain_kernel(_most: int | None) -> list[FlowCount]:
        answer = answers.pop(0)
        if isinstance(answer, LoadError):
            raise answer
        return answer

    tap = counting_tap(drain_kernel, lambda: counted.pop(0))
    with pytest.raises(LoadError):
        tap.drain()
    assert tap.drain() == [LEFT, COUNTED, IN_KERNEL]
    assert tap.dropped_packets == 11
    assert tap._left == []


def test_where_the_kernel_refuses_for_ever_the_rest_is_handed_over() -> None:
    def refuse(_most: int | None) -> list[FlowCount]:
        raise LoadError("never")

    tap = counting_tap(refuse, lambda: [COUNTED])
    for _ in range(23):
        with pytest.raises(LoadError, match="never"):
            tap.drain()
        assert tap.drain() == [COUNTED] * 2
