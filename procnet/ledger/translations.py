"""Which socket a flow on the wire is of, where this host translates addresses or ports (NAT).

A translated connection has other ends on either side of the host. Its two sockets know it by those
of their own side: who began it by the near ones, the other by the far ones. So a flow that shows
the first with the far ends, or the other with the near ones, is of a socket with other ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from procnet.ledger.claims import ALWAYS_NS, FOREVER_NS, shifted
from procnet.model import Ends, FlowCount, Translation

MAX_TRANSLATIONS = 131_072
_SLACK_NS = 1_000_000
"""The first packet from outside is seen before its connection is known to the kernel."""
_NEVER = (FOREVER_NS, ALWAYS_NS)


class _Known:
    """When a translation was there: surely from ``begin_ns`` (nothing else had the tuple for
    seconds before) to ``sure_to_ns``, and at the latest until ``end_ns``. ``watched``: its end will
    be told, as its beginning was."""

    __slots__ = ("begin_ns", "end_ns", "sure_to_ns", "translation", "watched")

    def __init__(self, translation: Translation, begin_ns: int, sure_to_ns: int) -> None:
        self.translation = translation
        self.begin_ns = begin_ns
        self.sure_to_ns = sure_to_ns
        self.end_ns = FOREVER_NS
        self.watched = sure_to_ns == FOREVER_NS


class Found(NamedTuple):
    """The ends of the sockets that a run may be of; ``sure`` that it is of one with the first.

    ``open``: nothing is sure yet, but the next look at the translations tells.
    """

    ends: tuple[Ends, ...]
    sure: bool
    open: bool


NOT_TRANSLATED = Found((), True, False)


class Translations:
    """What is known of them; bounded, the one that was heard of first goes first."""

    def __init__(self, max_translations: int = MAX_TRANSLATIONS) -> None:
        self.lost = 0
        """How many could not be kept or understood, and times that not all were told of."""
        self._max_translations = max_translations
        self._alive: dict[Translation, _Known] = {}
        self._ended: deque[_Known] = deque()
        # By the ends that a flow shows: those of its socket, and when that was so.
        self._by_shown: dict[Ends, list[tuple[Ends, _Known]]] = {}
        # When there may have been others: from, to.
        self._lacking_ns = _NEVER

    def __bool__(self) -> bool:
        return bool(self._by_shown)

    @property
    def is_to_be_confirmed(self) -> bool:
        """Are there some of which nobody would tell when they end, or that were not told of?"""
        lacking = self._lacking_ns[1] == FOREVER_NS
        return lacking or any(not known.watched for known in self._alive.values())

    def hear(
        self, begun: Iterable[Translation], ended: Iterable[Translation], since_ns: int,
        until_ns: int,
    ) -> None:  # fmt: skip
        """Takes what began and what ended between the two."""
        for translation in begun:
            known = self._alive.get(translation)
            if known is None:
                self._begin(translation, since_ns, FOREVER_NS)
            else:
                known.sure_to_ns, known.watched = FOREVER_NS, True
        for translation in ended:
            known = self._alive.pop(translation, None)
            if known is not None:
                self._end(known, since_ns, until_ns)

    def missed(self, since_ns: int) -> None:
        """What began and ended since then was not told of all."""
        self._lose(since_ns, FOREVER_NS)
        for known in self._alive.values():
            known.sure_to_ns = min(known.sure_to_ns, since_ns)

    def look(self, translations: Iterable[Translation], previous_ns: int, started_ns: int) -> None:
        """Takes all that there were at ``started_ns``; the look before was at ``previous_ns``."""
        lacking_from_ns, lacking_to_ns = self._lacking_ns
        self._lacking_ns = (lacking_from_ns, min(lacking_to_ns, started_ns))
        gone = dict(self._alive)
        for translation in translations:
            known = gone.pop(translation, None)
            if known is None and translation not in self._alive:
                self._begin(translation, previous_ns, started_ns)
            elif known is not None:
                until_ns = FOREVER_NS if known.watched else started_ns
                known.sure_to_ns = max(known.sure_to_ns, until_ns)
        for translation, known in gone.items():
            # Of what has begun since, the look does not know.
            if known.begin_ns < started_ns:
                del self._alive[translation]
                self._end(known, min(known.sure_to_ns, previous_ns), started_ns)

    def find(self, count: FlowCount) -> Found:
        """Of which socket a run is, by the ends that the socket knows it by."""
        assert count.key is not None
        known = self._by_shown.get(count.key[1:])
        if known is None:
            return NOT_TRANSLATED
        at = [
            (ends, each)
            for ends, each in known
            if each.begin_ns - _SLACK_NS <= count.last_ns and count.first_ns <= each.end_ns
        ]
        if not at:
            return NOT_TRANSLATED
        sure = {
            ends
            for ends, each in at
            if each.begin_ns - _SLACK_NS <= count.first_ns and count.last_ns <= each.sure_to_ns
        }
        others = {ends for ends, _ in at} - sure
        return Found(
            (*sure, *others),
            len(sure) == 1,
            any(each.sure_to_ns < count.last_ns and each.end_ns == FOREVER_NS for _, each in at),
        )

    def may_lack(self, count: FlowCount) -> bool:
        """May a translation have been there at the time of the run that is not known?"""
        from_ns, to_ns = self._lacking_ns
        return from_ns - _SLACK_NS <= count.last_ns and count.first_ns <= to_ns

    def forget(self, before_ns: int) -> None:
        """Lets go of those that ended before."""
        if self._lacking_ns[1] < before_ns:
            self._lacking_ns = _NEVER
        for _ in range(len(self._ended)):
            known = self._ended.popleft()
            if known.end_ns < before_ns:
                self._remove(known)
            else:
                self._ended.append(known)

    def shift(self, step_ns: int) -> None:
        """The wall clock was set by so much."""
        for known in (*self._alive.values(), *self._ended):
            known.begin_ns = shifted(known.begin_ns, step_ns)
            known.sure_to_ns = shifted(known.sure_to_ns, step_ns)
            known.end_ns = shifted(known.end_ns, step_ns)
        from_ns, to_ns = self._lacking_ns
        self._lacking_ns = (shifted(from_ns, step_ns), shifted(to_ns, step_ns))

    def _begin(self, translation: Translation, begin_ns: int, sure_to_ns: int) -> None:
        self._make_room()
        known = self._alive[translation] = _Known(translation, begin_ns, sure_to_ns)
        for shown, ends in _sights(translation):
            self._by_shown.setdefault(shown, []).append((ends, known))

    def _make_room(self) -> None:
        if len(self._alive) + len(self._ended) < self._max_translations:
            return
        known = self._ended.popleft() if self._ended else self._alive.pop(next(iter(self._alive)))
        self._lose(known.begin_ns, known.end_ns)
        self._remove(known)

    def _lose(self, since_ns: int, until_ns: int) -> None:
        self.lost += 1
        from_ns, to_ns = self._lacking_ns
        self._lacking_ns = (min(from_ns, since_ns), max(to_ns, until_ns))

    def _end(self, known: _Known, sure_to_ns: int, end_ns: int) -> None:
        known.sure_to_ns = min(known.sure_to_ns, sure_to_ns)
        known.end_ns = end_ns
        self._ended.append(known)

    def _remove(self, known: _Known) -> None:
        for shown, _ in _sights(known.translation):
            kept = [each for each in self._by_shown[shown] if each[1] is not known]
            if kept:
                self._by_shown[shown] = kept
            else:
                del self._by_shown[shown]


def _sights(translation: Translation) -> tuple[tuple[Ends, Ends], ...]:
    """What a flow shows, each seen from its socket, and the ends of that socket."""
    return (
        (translation.far, translation.near),
        (reverse(translation.near), reverse(translation.far)),
    )


def reverse(ends: Ends) -> Ends:
    """The same, seen from the other end."""
    protocol, source, source_port, destination, destination_port = ends
    return protocol, destination, destination_port, source, source_port
