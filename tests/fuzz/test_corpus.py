"""What the fuzzers found on their way, and what they start from, again: every property holds.

``make fuzz`` looks for more (docs/guide.md, Hostile input).
"""

from __future__ import annotations

import importlib
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from procnet import cli, netlink
from procnet.bpf import counts, events, ring, snapshot
from procnet.capture import decode, handle
from procnet.capture.counter import Counter
from procnet.report import as_text
from procnet.sockets import conntrack, diag, fork_events, holders, process, tables
from procnet.sockets.pids import process_directory
from tests.fuzz import TARGETS
from tests.fuzz.pieces import join, split

CORPUS = Path(__file__).with_name("corpus")
MAX_CORPUS_BYTES = 300_000


def inputs(name: str) -> dict[str, bytes]:
    """By name: the kept ones, the seeds, and what libFuzzer begins with."""
    kept = {path.name: path.read_bytes() for path in (CORPUS / name).iterdir()}
    seeds = importlib.import_module(f"tests.fuzz.{name}").seeds()
    assert kept
    return {**kept, **{f"seed {n}": seed for n, seed in enumerate(seeds)}, "nothing": b""}


def broken_by(name: str) -> list[str]:
    """The inputs that break a property, and how."""
    check: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.{name}").check
    found = []
    for each, data in inputs(name).items():
        try:
            check(data)
        except Exception as error:
            found.append(f"{each}: {error!r}")
    return found


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_property(name: str) -> None:
    assert broken_by(name) == []


def forgetful(self: Counter) -> list[Any]:
    return drain(self)[1:]


drain = Counter.drain


@pytest.mark.parametrize(
    ("name", "place", "thing", "defect"),
    [
        ("frames", decode, "_PORTS", struct.Struct("<HH").unpack_from),
        ("frames", decode, "_require", lambda *_: None),
        ("frames", Counter, "_begin", lambda self, run, timestamp, opens: False),
        ("frames", decode, "_MAX_JUMBO_BYTES", 1 << 32),
        ("files", Counter, "drain", forgetful),
        ("files", handle, "CaptureError", OSError),
        ("proc", holders, "_SOCKET_LINK", re.compile(r"socket:\[([0-9]{1,20})\]")),
        ("proc", process, "process_directory", lambda root, pid: process_directory(root, 23)),
        ("proc", tables, "_INET4", re.compile(tables._INET4.pattern.replace(" ", r"\s"), re.M)),
        ("netlink", diag, "aligned", lambda length: length + 4),
        ("netlink", diag, "SOCK_DIAG_BY_FAMILY", 9),
        ("netlink", netlink, "_MAX_ERRNO", 1 << 40),
        ("netlink", fork_events, "_PROCESSES", struct.Struct(">16xIIII")),
        ("conntrack", conntrack, "parse_connection", lambda body: body[len(body)]),
        ("conntrack", netlink, "_MAX_ERRNO", 1 << 40),
        ("records", events, "_KINDS", {}),
        ("records", counts, "_unpack", lambda entries: iter(())),
        ("records", ring, "_DISCARDED", 0),
        ("records", snapshot, "CLOCK_TICK_NS", 1),
        ("output", as_text, "printable", lambda text, width=None: text),
        ("output", cli, "printable_lines", str),
        ("output", process, "decode_text", os.fsdecode),
    ],
)
def test_a_defect_would_be_found(
    name: str, place: object, thing: str, defect: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, thing, defect)
    assert broken_by(name)


def test_the_corpus_is_of_known_targets_and_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(sizes) <= MAX_CORPUS_BYTES


def test_pieces_come_back() -> None:
    pieces = [b"", b"one", bytes(23)]
    assert split(join(pieces)) == pieces
    assert split(join(pieces)[:-1]) == [*pieces[:-1], bytes(22)]
