"""The error tree. A message says what was tried, on what, and what to do about it."""

from __future__ import annotations


class ProcnetError(Exception):
    """Anything that procnet raises on purpose."""


class UsageError(ProcnetError, ValueError):
    """A value that the caller gave cannot be right (a negative interval, an unknown rung)."""


class AccessError(ProcnetError, PermissionError):
    """The kernel refuses it to this user; the message names the privilege that is missing."""


class CaptureError(ProcnetError):
    """An interface or a capture file cannot be opened or read."""


class UnsupportedError(ProcnetError):
    """A source that was asked for cannot be had on this host; the message says what is missing."""


class LoadError(UnsupportedError):
    """The kernel or the compiler refused a BPF program; the message carries what it said."""


class LayoutError(LoadError):
    """A BPF program and its user-space mirror disagree about a record: nothing may be read."""


class ConservationError(ProcnetError):
    """Bytes were lost or made up between the counters and a report: a defect of procnet."""
