"""Whether an answer says what was expected: the same final answer, or where none is marked the same text."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

MARK = "####"  # GSM8K: what follows, to the end of the line, is the answer
BOXED = "\\boxed{"  # MATH
THOUGHT_END = "</think>"
NUMBER = re.compile(r"[+-]?(\d+(,\d{3})*|\d*)(\.\d*)?")


def is_right(answer: str, expected: str) -> bool:
    """Whether both come to the same: `1,000` and `$1000.00` do, as numbers; other words must be equal."""
    return normal(final_answer(answer)) == normal(final_answer(expected))


def final_answer(text: str) -> str:
    r"""What stands behind the last `####`, or in the last `\boxed{}`; else the whole text. Thoughts do not count."""
    text = text.rpartition(THOUGHT_END)[2]
    if MARK in text:
        return text.rpartition(MARK)[2].strip().partition("\n")[0]
    if BOXED in text:
        return _in_braces(text.rpartition(BOXED)[2])
    return text


def normal(text: str) -> str:
    """One spelling: a number without commas, currency, trailing dot and zeros; other text with single spaces."""
    text = " ".join(text.split())
    bare = text.replace("\\$", "").replace("$", "").replace(" ", "").rstrip(".").removesuffix("%").removesuffix("\\")
    if not NUMBER.fullmatch(bare) or not any(character.isdigit() for character in bare):
        return text
    try:
        number = Decimal(bare.replace(",", ""))
    except InvalidOperation:
        return text
    return f"{number.normalize() + 0:f}"  # + 0: no minus zero


def _in_braces(text: str) -> str:
    """Up to the brace that closes what `text` is inside of."""
    depth = 1
    for n, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:n]
    return text
