"""Runs of sockets that the tuple on the wire does not lead to.

Those of a connection that this host translates (NAT), wherever its socket is; and those that pass
through this host, where one end is a socket in another of its network namespaces. A packet that
passes is captured as it comes in and as it goes out. The first counts for who receives it, the
second for who sent it, so each for one that is behind another interface: nobody gets it twice.
"""

from __future__ import annotations

from collections.abc import Iterable

from procnet.ledger.claims import NOBODY, grace_ns
from procnet.ledger.namespaces import Namespaces
from procnet.ledger.owners import OwnerTable
from procnet.ledger.translations import Found, Translations, reverse
from procnet.ledger.verdict import NO_SOCKET, SEEN, UNSEEN, Verdict, When, decide
from procnet.model import Ends, FlowCount, FlowKey, Reason

FORWARDED = Verdict(None, None, Reason.FORWARDED, NOBODY)
_UNDECIDED = Verdict(None, None, Reason.AMBIGUOUS, NOBODY)
_LOOPBACK = (b"\x7f", bytes(15) + b"\x01")


class Elsewhere:
    """Whose runs are, of which the tuple does not say it, by namespaces and translations."""

    def __init__(self, owners: OwnerTable) -> None:
        self.translations = Translations()
        self.everywhere = False
        """Are the sockets of other namespaces told of too?"""
        self.is_blind = False
        """May connections be translated of which we cannot be told?"""
        self.namespaces = Namespaces()
        self._owners = owners

    @property
    def in_use(self) -> bool:
        """May there be such runs at all?"""
        return self.everywhere or bool(self.translations)

    def find(self, count: FlowCount) -> Found | None:
        """Of which sockets it may be; None if it is no such run, and its tuple is its socket's."""
        key = count.key
        assert key is not None
        if self.translations:
            found = self.translations.find(count)
            if found.ends:
                return found
        if count.reason is None:
            return None
        return Found((key[1:],), True, False)

    def may_translate(self, count: FlowCount) -> bool:
        """May the run be of a connection that this host translates?"""
        if self.is_blind:
            return True
        return bool(self.translations) and bool(self.translations.find(count).ends)

    def decide(self, count: FlowCount, found: Found, when: When) -> Verdict:
        """Whose the run is, as ``verdict.decide``; FORWARDED if it is of another host."""
        key = count.key
        assert key is not None
        if not found.sure:
            if found.open and not when.last_word:
                return SEEN
            # The tuple on the wire may have been that of a socket here, before or after.
            others = self._owners.knows((key.netns, key.protocol, key.local_port))
            if len(found.ends) > 1 or others:
                return _UNDECIDED
        ends = found.ends[0]
        keys, owned = self._sockets(count, ends)
        if keys:
            return self._decide(count, keys, when)
        if owned:
            return NO_SOCKET if when.last_word else UNSEEN
        # A namespace that is new has its addresses known by the next look.
        if count.reason is None and not (when.looked or when.last_word):
            return UNSEEN
        if count.reason is None and self._owners.losses.hit(count):
            return NO_SOCKET
        return self._passed_on(count, when)

    def doubt(self, count: FlowCount, verdict: Verdict) -> Verdict:
        """The verdict on a run whose tuple leads to its socket, unless NAT may say otherwise.

        What is sent for a container can have any port of this host's. If its translation may not
        have been told of, only a socket that is known by the whole tuple is believed.
        """
        if not (self.is_blind or self.translations.may_lack(count)):
            return verdict
        key = count.key
        assert key is not None
        if verdict.process is None or key.local_address.startswith(_LOOPBACK):
            return verdict
        if any(True for _ in self._owners.claims(key)):
            return verdict
        return Verdict(None, None, Reason.AMBIGUOUS, frozenset((verdict.process,)))

    def _passed_on(self, count: FlowCount, when: When) -> Verdict:
        """It is for another host; if it comes from a socket of this one, that is a candidate.

        Its process has it on the interface where it leaves or enters this host.
        """
        if count.reason is None or not self.everywhere:
            return FORWARDED
        assert count.key is not None
        keys, _ = self._sockets(count, reverse(count.key[1:]))
        verdict = self._decide(count._replace(sent=not count.sent), keys, when)
        if verdict is SEEN:
            return SEEN
        if verdict.process is None:
            return FORWARDED
        return FORWARDED._replace(candidates=frozenset((verdict.process,)), socket=verdict.socket)

    def _sockets(self, count: FlowCount, ends: Ends) -> tuple[list[FlowKey], bool]:
        """The keys to ask the owners for, and whether a namespace is known to have the address.

        Whoever was told of by these very ends has the address. One that is not connected is only
        known by its port, which it may share with others that have another address.
        """
        assert count.key is not None
        protocol, address, port, _, _ = ends
        homes = namespaces = {count.key.netns}
        if not address.startswith(_LOOPBACK):
            homes = self.namespaces.homes(address)
            namespaces = self.namespaces.that_may_have(address) | namespaces
        grace = grace_ns(protocol)
        exact = [
            key
            for key in (FlowKey(netns, *ends) for netns in namespaces)
            if any(claim.may_cover(count, grace) for claim in self._owners.claims(key))
        ]
        if exact:
            return exact, True
        known = (netns for netns in homes if self._owners.knows((netns, protocol, port)))
        return [FlowKey(netns, *ends) for netns in known], bool(homes)

    def _decide(self, count: FlowCount, keys: Iterable[FlowKey], when: When) -> Verdict:
        verdicts: dict[FlowKey, Verdict] = {}
        for key in keys:
            run = count._replace(key=key, reason=None)
            verdict = decide(self._owners, run, when)
            if verdict is UNSEEN or verdict is SEEN:
                return SEEN
            if verdict is not NO_SOCKET:
                verdicts[key] = verdict
        if not verdicts:
            return NO_SOCKET
        if len(verdicts) > 1:
            named = {each.process for each in verdicts.values() if each.process is not None}
            candidates = NOBODY.union(named, *(each.candidates for each in verdicts.values()))
            return Verdict(None, None, Reason.AMBIGUOUS, candidates)
        ((key, verdict),) = verdicts.items()
        return verdict._replace(socket=key)
