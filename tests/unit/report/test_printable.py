from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procnet.report.printable import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nginx: worker", "nginx: worker"),
        ("café 日本", "café 日本"),
        ("a\x1b[2J", r"a\x1b[2J"),
        ("a\nb\tc\r", r"a\x0ab\x09c\x0d"),
        ("\x00\x7f", r"\x00\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066\u2069\u200e\u061c", r"\u2066\u2069\u200e\u061c"),
        ("a\u200bb\ufeff\u2060", r"a\u200bb\ufeff\u2060"),
        ("a\u2028b\u00a0c", r"a\u2028b\xa0c"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
        ("a\ufe0fb\u3164", r"a\ufe0fb\u3164"),
        ("sshd\u2800\U0001d159", r"sshd\u2800\U0001d159"),
        ("\\x1b", "\\x1b"),
        ("", ""),
    ],
)
def test_what_could_steer_or_deceive_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdef", 5, "abcd…"),
        ("abcdef", 1, "…"),
        ("a\x1bcd", 6, r"a\x1b…"),
        ("", 1, ""),
    ],
)
def test_what_is_too_long_is_cut_and_says_so(text: str, width: int, shown: str) -> None:
    assert printable(text, width) == shown


def test_lines_stay_lines() -> None:
    assert printable_lines("a\n\x1b[2J\r\n") == "a\n\\x1b[2J\\x0d\n"


def test_a_width_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="width of 0"):
        printable("a", 0)


@given(st.text(st.characters()), st.none() | st.integers(1, 30))
def test_no_text_brings_a_control_character_through(text: str, width: int | None) -> None:
    shown = printable(text, width)
    assert not [c for c in shown if unicodedata.category(c)[0] == "C"]
    assert "\n" not in shown
    assert width is None or len(shown) <= width
