"""Make text from rows, file names and models harmless for whoever shows it: a terminal, a log, a page, a card."""

from __future__ import annotations

import re

# C0 but tab and newline, DEL, C1; marks and overrides of direction; separators that end a line; tags; lone surrogates.
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f"
    "\ud800-\udfff]"
)
CONTROL_PICTURES = 0x2400  # ␀, ␁, ...: the picture of every C0 character


def visible(text: str) -> str:
    """Return the text with every character that a terminal obeys replaced by one that shows it; lines stay lines.

    Escape sequences (colours, titles, the clipboard), backspaces and changes of direction become readable.
    """
    return OBEYED.sub(_shown, text)


def visible_line(text: str) -> str:
    """As `visible`, on one line: for names, which stand in the middle of a sentence."""
    return visible(text).replace("\n", "␊").replace("\t", "␉")


def code_span(text: str) -> str:
    """Return Markdown that shows the text as code, whatever it holds: a backtick does not end it."""
    text = visible_line(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _shown(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(CONTROL_PICTURES + code)
    return "␡" if code == 0x7F else f"\\u{code:04x}"
