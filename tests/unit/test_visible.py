"""What comes from rows, names and models is shown and not obeyed."""

import ast
import re
from pathlib import Path

import pytest

import sft
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


SAFE = {"presentable", "visible", "visible_line", "help_text", "reference", "bash_completion"}
"""Functions whose text may be printed: it has gone through `visible`, or is our own."""


def test_every_print_shows_text_that_is_visible_or_our_own():
    """Whatever names a path, a row or an error goes through `presentable` on its way to a terminal."""
    raw = [
        f"{path}:{call.lineno} print({ast.unparse(argument)})"
        for path in sorted(Path(sft.__file__).parent.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"
        for argument in call.args
        if not _is_safe(argument)
    ]
    assert raw == []


def _is_safe(text: ast.expr) -> bool:
    if isinstance(text, ast.JoinedStr):
        return all(_is_safe(part) for part in text.values)
    if isinstance(text, ast.FormattedValue):
        return text.format_spec is not None or _is_safe(text.value)  # a number
    if isinstance(text, ast.IfExp):
        return _is_safe(text.body)
    if isinstance(text, ast.Name):
        return text.id == "__doc__"
    called = text.func if isinstance(text, ast.Call) else None
    return isinstance(text, ast.Constant) or (isinstance(called, ast.Name) and called.id in SAFE)
