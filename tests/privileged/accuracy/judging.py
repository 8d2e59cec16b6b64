"""Holds what was reported against what the processes and the second witness say, to the byte.

A flow is judged at the host, each direction for itself, at two layers. Payload: against what each
process moved. Wire: against what the witness saw of the flow; there a name is right if it is that
of one of the flow's users, since headers have no other owner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tests.privileged.accuracy.setting import Leg
from tests.privileged.lab import Count
from tests.privileged.reporting import SIDES
from tests.workloads.scene import HOST

Truth = list[dict[str, Any]]
Process = tuple[int, int]
"""pid and start time, in ns since boot."""

PAYLOAD, WIRE = "payload_bytes", "wire_bytes"
LAYERS = (PAYLOAD, WIRE)
_TICK_NS = 10_000_000
_IP_HEADER_BYTES = {4: 20, 6: 40}


class Flow(NamedTuple):
    """Of the host's, as one of its sockets has it."""

    protocol: str
    local: tuple[str, int]
    remote: tuple[str, int]


class Share(NamedTuple):
    """Bytes of what was counted by what was said of them, and what was counted too much or too
    little, whoever was named. What no process moved is named rightly if nobody is."""

    truth: int
    named: int
    wrong: int
    unnamed: Counter[str]
    error: int

    @property
    def is_exact(self) -> bool:
        return (self.named, self.wrong, self.error) == (self.truth, 0, 0)


Verdict = dict[str, Share]
"""By layer."""


def process_of(entry: Mapping[str, Any]) -> Process | None:
    if entry["pid"] is None:
        return None
    return entry["pid"], entry["start_time_ticks"] * _TICK_NS


def flow_of(entry: Mapping[str, Any]) -> Flow:
    return Flow(entry["protocol"], tuple(entry["local"]), tuple(entry["remote"]))


def named(row: Mapping[str, Any]) -> Process | None:
    process = row["process"]
    return (process["pid"], process["start_time_ns"]) if process else None


def candidates(row: Mapping[str, Any]) -> set[Process]:
    return {(each["pid"], each["start_time_ns"]) for each in row.get("candidates") or ()}


class Evidence:
    """A report's rows by flow, and the second witness's counts by leg."""

    def __init__(
        self, report: Mapping[str, Any], legs: Mapping[Leg, Count], host: int, inner: int
    ) -> None:
        self._host, self._inner = host, inner
        self._rows: dict[tuple[int, Flow], list[dict[str, Any]]] = {}
        for row in report["flows"]:
            local, remote = row["local"], row["remote"]
            flow = Flow(
                row["protocol"],
                (local["address"], local["port"]),
                (remote["address"], remote["port"]),
            )
            self._rows.setdefault((row["netns"], flow), []).append(row)
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._packets: Counter[tuple[object, ...]] = Counter()
        for leg, count in legs.items():
            ends = leg.source, leg.target
            if leg.protocol == "sctp":  # procnet tells it by address
                ends = (leg.source[0], 0), (leg.target[0], 0)
            self._seen[(leg.protocol, *ends)] += count.wire_bytes
            self._packets[(leg.protocol, *ends)] += count.packets

    def rows(self, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Those of its flow: where it is told, or where its process is."""
        protocol, local, remote = flow_of(entry)
        found = self._rows.get((self._host, Flow(protocol, local, remote)), [])
        if not found and "inside" in entry:
            found = self._rows.get(
                (self._inner, Flow(protocol, tuple(entry["inside"]), remote)), []
            )
        return found

    def wire(self, flow: Flow) -> tuple[int, int]:
        """(sent, received) wire bytes."""
        out, back = self._ways(flow)
        return self._seen[out], self._seen[back]

    def payload_above_ip(self, flow: Flow) -> tuple[int, int]:
        """(sent, received) bytes above the IP headers."""
        header = _IP_HEADER_BYTES[6 if ":" in flow.local[0] else 4]
        out, back = self._ways(flow)
        return (
            self._seen[out] - header * self._packets[out],
            self._seen[back] - header * self._packets[back],
        )

    @staticmethod
    def _ways(flow: Flow) -> tuple[tuple[object, ...], tuple[object, ...]]:
        return (flow.protocol, flow.local, flow.remote), (flow.protocol, flow.remote, flow.local)


def settled(truth: Truth) -> Truth:
    """What was sent twice was moved twice, at both ends. All users of a connection tell of it."""
    repeated: dict[Flow, int] = {}
    for entry in truth:
        flow = flow_of(entry)
        repeated[flow] = max(repeated.get(flow, 0), entry.get("again", 0))
    for flow, again in repeated.items():
        back = Flow(flow.protocol, flow.remote, flow.local)
        for side, ends in (("sent", flow), ("received", back)):
            users = [entry for entry in truth if flow_of(entry) == ends]
            if again and users:
                most = max(users, key=lambda entry: entry[side])
                most[side] += again
                most[f"{side}_again"] = again
    return [entry for entry in truth if entry["place"] == HOST]


def at_sockets(truth: Truth) -> Truth:
    """What there is to be counted at sockets: what processes moved, once for each that took it."""
    return [{**entry, "by_each": True} for entry in truth if entry["pid"] is not None]


def judge(truth: Truth, evidence: Evidence) -> Verdict:
    by_flow: dict[Flow, Truth] = {}
    for entry in truth:
        by_flow.setdefault(flow_of(entry), []).append(entry)
    shares: dict[str, list[Share]] = {layer: [] for layer in LAYERS}
    for entries in by_flow.values():
        for number in range(len(SIDES)):
            shares[PAYLOAD].append(payload_share(entries, evidence, number))
            shares[WIRE].append(wire_share(entries, evidence, number))
    return {layer: total(shares[layer]) for layer in LAYERS}


def payload_share(entries: Truth, evidence: Evidence, number: int) -> Share:
    """Of one direction of one flow."""
    side, rows = SIDES[number], evidence.rows(entries[0])
    payload = moved(entries, side)
    if entries[0].get("by_witness"):
        size = evidence.payload_above_ip(flow_of(entries[0]))[number]
        payload = Counter({process_of(entries[0]): size})
    if entries[0].get("shared"):
        size = max(payload.values()) * times(entries)
        return share_of_all(entries, rows, side, PAYLOAD, size)
    again = sum(entry.get(f"{side}_again", 0) for entry in entries)
    return share_of_each(payload, rows, side, again)


def wire_share(entries: Truth, evidence: Evidence, number: int) -> Share:
    """The same on the wire."""
    side, rows = SIDES[number], evidence.rows(entries[0])
    told = [entry["wire"][number] for entry in entries if "wire" in entry]
    size = sum(told) if told else evidence.wire(flow_of(entries[0]))[number]
    return share_of_all(entries, rows, side, WIRE, size * times(entries))


def times(entries: Truth) -> int:
    """How often what several took is counted."""
    return len(entries) if entries[0].get("shared") and entries[0].get("by_each") else 1


def moved(entries: Truth, side: str) -> Counter[Process | None]:
    found: Counter[Process | None] = Counter()
    for entry in entries:
        found[process_of(entry)] += entry[side]
    return found


def share_of_each(
    truth: Counter[Process | None], rows: Iterable[Mapping[str, Any]], side: str, again: int
) -> Share:
    """Where it is known which process moved how much.

    ``again``: so many bytes were sent a second time, and of several users it is not known whose.
    """
    found: Counter[Process | None] = Counter()
    reasons: Counter[str] = Counter()
    for row in rows:
        found[named(row)] += row[side][PAYLOAD]
        if row["process"] is None:
            reasons[row["reason"]] += row[side][PAYLOAD]
    right = {who: min(size, truth[who]) for who, size in found.items()}
    # What was counted too often of one's own is an error of the count, and no wrong name.
    surplus = max(0, found.total() - truth.total())
    wrong = sum(size - right[who] for who, size in found.items() if who is not None)
    of_users = sum(size - right[who] for who, size in found.items() if who in truth and who)
    wrong -= min(surplus + again, of_users)
    if None in truth:
        reasons.clear()
    sent_again = min(again, of_users)
    nobodys = 0 if None in truth else right.get(None, 0)
    return Share(
        truth.total(), sum(right.values()) + sent_again - nobodys, wrong,
        reasons, abs(found.total() - truth.total()),
    )  # fmt: skip


def share_of_all(
    entries: Truth, rows: Iterable[Mapping[str, Any]], side: str, layer: str, truth: int
) -> Share:
    """Where it is only known who had part in it. Of what several took at once, all are told."""
    users = {process_of(entry) for entry in entries}
    takers = {process_of(entry) for entry in entries if entry.get("shared")}
    right = wrong = counted = 0
    reasons: Counter[str] = Counter()
    for row in rows:
        size = row[side][layer]
        counted += size
        if named(row) in users or (takers and candidates(row) == takers):
            right += size
        elif row["process"] is None:
            reasons[row["reason"]] += size
        else:
            wrong += size
    return Share(truth, min(right, truth), wrong, reasons, abs(counted - truth))


def total(shares: Iterable[Share]) -> Share:
    found = Share(0, 0, 0, Counter(), 0)
    for each in shares:
        found = Share(
            found.truth + each.truth, found.named + each.named, found.wrong + each.wrong,
            found.unnamed + each.unnamed, found.error + each.error,
        )  # fmt: skip
    return found
