"""A clock that stands still until a test moves it."""

from __future__ import annotations


class Clock:
    """Seconds. ``step_s`` goes by with each look at it."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s, self.step_s = 1000.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s
