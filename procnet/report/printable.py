"""Text from processes and packets, made safe to show on a terminal."""

from __future__ import annotations

# Shown as nothing or as a blank although str.isprintable() lets them through: two names could look
# the same. Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties.txt), letters and marks;
# BRAILLE PATTERN BLANK, MUSICAL SYMBOL NULL NOTEHEAD.
_INVISIBLE = frozenset(
    chr(code)
    for first, last in (
        (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2065, 0x2065),
        (0x2800, 0x2800), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0x1D159, 0x1D159),
        (0xE0000, 0xE0FFF),
    )
    for code in range(first, last + 1)
)  # fmt: skip

_CUT = "…"


def printable(text: str, width: int | None = None) -> str:
    """``text`` with everything that could steer or deceive a terminal escaped.

    Control characters (C0, DEL, C1), newlines, bidirectional overrides, zero-width characters,
    blanks other than the space, surrogates and code points without a meaning become ``\\xNN``,
    ``\\uNNNN`` or ``\\UNNNNNNNN``: ``printable("a\\x1b[2J") == r"a\\x1b[2J"``. A backslash stays:
    the result is for reading and cannot be turned back.

    ``width`` is the most characters to return; what is longer ends in ``…``. Raises ValueError for
    a ``width`` below 1.
    """
    if width is not None and width < 1:
        raise ValueError(f"a width of {width} characters cannot hold anything")
    if width is not None:
        text = text[: width + 1]  # an escaped character never gets shorter
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_visible, text))
    if width is not None and len(text) > width:
        text = text[: width - 1] + _CUT
    return text


def printable_lines(text: str) -> str:
    """The same for a text of several lines, which stay that."""
    return "\n".join(map(printable, text.split("\n")))


def _visible(character: str) -> str:
    if character.isprintable() and character not in _INVISIBLE:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
