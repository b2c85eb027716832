"""Grade an answer: right if it has the expected final answer, or, where none is marked, the expected text."""

from __future__ import annotations

import re

MARK = "####"  # GSM8K: what follows, to the end of the line, is the answer
BOXED = "\\boxed{"  # MATH
THOUGHT_END = "</think>"
BOLD = re.compile(r"\*\*(.*)\*\*")
NUMBER = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d+(,\d{3})*|\d*)(\.(?P<part>\d*))?")
CURRENCY = re.compile(r"\s*\\?\$\s*")
PERCENT = re.compile(r"\s*\\?%$")


def is_right(answer: str, expected: str) -> bool:
    """Return True if both answers agree: `1,000` and `$1000.00` do, as numbers; other words must be equal."""
    return normal(final_answer(answer)) == normal(final_answer(expected))


def final_answer(text: str) -> str:
    r"""Return what follows the last `####`, or is in the last `\boxed{}`; else the whole text. Thoughts do not count.

    Behind `####`, a box or bold type around the answer is not a part of it.
    """
    text = text.rpartition(THOUGHT_END)[2]
    if MARK in text:
        text = text.rpartition(MARK)[2].strip().partition("\n")[0].strip()
        text = bold.group(1) if (bold := BOLD.fullmatch(text)) else text
    if BOXED in text:
        return _in_braces(text.rpartition(BOXED)[2])
    return text


def normal(text: str) -> str:
    """Normalise the spelling: numbers lose commas, currency, trailing dot and zeros; other text has single spaces."""
    text = " ".join(text.split())
    bare = PERCENT.sub("", CURRENCY.sub("", text).rstrip("."))
    number = NUMBER.fullmatch(bare)
    if number is None or not any(character.isdigit() for character in bare):
        return text
    whole, part = number["whole"].replace(",", "").lstrip("0"), (number["part"] or "").rstrip("0")
    sign = "-" if number["sign"] == "-" and (whole or part) else ""
    return f"{sign}{whole or 0}" + (f".{part}" if part else "")


def _in_braces(text: str) -> str:
    """Up to the brace that closes what `text` is inside of."""
    depth = 1
    for n, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:n]
    return text
