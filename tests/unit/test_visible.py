"""What comes from rows, names and models is shown and not obeyed."""

import re

import pytest

from sft.config.visible import code_span, visible, visible_line

OBEYED = {
    "clipboard": "\x1b]52;c;cHduZWQ=\x07",
    "title": "\x1b]0;owned\x1b\\",
    "clear screen": "\x1b[2J",
    "C1": "\x9b2J\x9d52;c;eA==\x9c",
    "carriage return": "safe\rovert",
    "backspace": "a\x08b",
    "bidi": "\u202egnp.exe\u202c \u2066x\u2069 \u200f\u061c",
    "separators": "a\u2028b\u2029c",
    "surrogate": "\udc9b",
    "tags": "\U000e0041",
}


@pytest.mark.parametrize("text", OBEYED.values(), ids=OBEYED.keys())
def test_nothing_is_left_that_a_terminal_obeys(text):
    shown = visible(text)
    left = re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    assert shown != text and not left
    assert shown.encode()


def test_ordinary_text_stays_as_it_is():
    text = "Ünïcode 日本語 👩‍💻 עברית\n\ttab and lines"
    assert visible(text) == text
    assert visible_line("a\nb\tc") == "a␊b␉c"


@pytest.mark.parametrize(
    ("text", "code"),
    [("a", "`a`"), ("a`b", "``a`b``"), ("`a``", "``` `a`` ```"), ("a\nb", "`a␊b`"), ("a\x1bb", "`a␛b`")],
)
def test_a_backtick_does_not_end_code(text, code):
    assert code_span(text) == code
