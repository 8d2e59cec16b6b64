"""Namespaces for tests: made for one test, gone after it, also when it fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.privileged.lab import Lab, Namespace


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A host, a peer, a cable between them, and the witness that counts on it."""
    with Lab() as made:
        yield made


@pytest.fixture
def loopback() -> Iterator[Namespace]:
    """One namespace that has nothing but its own loopback device."""
    with Namespace("loopback") as made:
        yield made
