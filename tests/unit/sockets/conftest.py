from __future__ import annotations

from pathlib import Path

import pytest

from procnet.testing.proc_tree import ProcTree
from tests.unit.sockets.clock import Clock


@pytest.fixture
def tree(tmp_path: Path) -> ProcTree:
    return ProcTree(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()
