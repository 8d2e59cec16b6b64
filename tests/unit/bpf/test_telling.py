"""What was told is handed over, whatever else is in the ring."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from procnet.bpf import layout
from procnet.bpf.telling import Sources, Telling
from tests.unit.bpf.fakes import PAGE, FakeRing
from tests.unit.bpf.test_events import record
from tests.unit.bpf.test_processes import process_record

FOREIGN = layout.LAYOUT + 1


class Told(Telling):
    """With the writing ends of its rings."""

    def __init__(self, proc_root: Path) -> None:
        self.events, self.processes = FakeRing(proc_root), FakeRing(proc_root)
        counters = os.memfd_create("counters")
        os.truncate(counters, PAGE)
        descriptors = (self.events.descriptor, self.processes.descriptor, counters)
        held = contextlib.ExitStack()
        for descriptor in descriptors:
            held.callback(os.close, descriptor)
        super().__init__(Sources.open(*descriptors, proc_root, held), held)


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    made = Told(tmp_path)
    yield made
    made.close()


def test_a_record_of_another_layout_is_a_loss_and_costs_no_other(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    for event in (record(inode=3), record(layout=FOREIGN), b"", record(inode=7), record(kind=99)):
        told.events.write(event)
    for process in (process_record(layout=FOREIGN)[:64], process_record(tgid=11)):
        told.processes.write(process)
    assert [event.inode for event in told.read()] == [3, 7]
    assert [process.pid for process in told.read_processes()] == [11]
    assert (told.events_lost(), told.processes_lost()) == (3, 1)
    told.events.write(record(kind=99))
    assert told.read() == []
    told.close()
    assert (told.events_lost(), told.processes_lost()) == (4, 1)
    (warning,) = caplog.messages
    assert "reinstall procnet" in warning
