"""Runs that wait for a witness, by port, so that what is told of one port costs only its runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from procnet.ledger.keys import Port
from procnet.model import FlowCount


class Waiting:
    """Runs in the order of their ports' first ones, each port's in the order of coming."""

    def __init__(self) -> None:
        self._by_port: dict[Port, list[FlowCount]] = {}
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[FlowCount]:
        return chain.from_iterable(self._by_port.values())

    def add(self, port: Port, count: FlowCount) -> None:
        """Lets one more wait."""
        self._number += 1
        runs = self._by_port.get(port)
        if runs is None:
            self._by_port[port] = [count]
        else:
            runs.append(count)

    def take_all(self) -> list[FlowCount]:
        """Everything that waits; nothing does any more."""
        runs = list(self)
        self._by_port = {}
        self._number = 0
        return runs

    def take(self, ports: Iterable[Port]) -> list[FlowCount]:
        """What waits at these ports."""
        runs: list[FlowCount] = []
        for port in ports:
            runs += self._by_port.pop(port, ())
        self._number -= len(runs)
        return runs

    def take_oldest(self, number: int) -> list[FlowCount]:
        """As many, of the ports that have waited longest."""
        runs: list[FlowCount] = []
        emptied: list[Port] = []
        for port, waiting in self._by_port.items():
            missing = number - len(runs)
            if len(waiting) > missing:
                runs += waiting[:missing]
                del waiting[:missing]
                break
            runs += waiting
            emptied.append(port)
        for port in emptied:
            del self._by_port[port]
        self._number -= len(runs)
        return runs
