"""The words for what a host can do: yes, no or unknown, each with its reason.

Every room probes its own, by doing and never by ``uname``; ``monitor.py`` collects.
"""

from __future__ import annotations

from procnet.model import Feature, Support


def yes(name: str, reason: str) -> Feature:
    """It works; ``reason`` says how we know."""
    return Feature(name, Support.YES, reason)


def no(name: str, reason: str, remedy: str = "") -> Feature:
    """It does not; ``remedy`` tells the user what would help."""
    return Feature(name, Support.NO, reason, remedy)


def unknown(name: str, reason: str, remedy: str = "") -> Feature:
    """The probe could not be made."""
    return Feature(name, Support.UNKNOWN, reason, remedy)
