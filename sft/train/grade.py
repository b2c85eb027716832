"""Grade answers: by the final answer, by whether the expected one stands in it, by ROUGE-L, or as a function says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path
from typing import Any

from sft.errors import InputError

MARK = "####"  # GSM8K: what follows, to the end of the line, is the answer
BOXED = "\\boxed{"  # MATH
THOUGHT_END = "</think>"
BOLD = re.compile(r"\*\*(.*)\*\*")
NUMBER = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d+(,\d{3})*|\d*)(\.(?P<part>\d*))?")
CURRENCY = re.compile(r"\s*\\?\$\s*")
PERCENT = re.compile(r"\s*\\?%$")
WRITTEN_NUMBER = re.compile(r"[+-]?\\?\$?(?:\d[\d,]*\.?\d*|\.\d+)")
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A word; of scripts that put no blanks between words, a character."""


@dataclass(frozen=True)
class Grader:
    """Measures how good an answer is, from the answer and the expected one. `metric` is its trainer.generate_metric."""

    metric: str
    grade: Callable[[str, str], Any]

    @property
    def name(self) -> str:
        """Return the name of its mean: that of the metric, or of the function."""
        return self.metric.rpartition(":")[2]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Grade each (answer, expected). Raises InputError where a function of the user's fails or gives no number."""
        return [self._score(*pair) for pair in pairs]

    def _score(self, answer: str, expected: str) -> float:
        try:
            score = self.grade(answer, expected)
            number = float(score)
        except Exception as error:
            raise InputError(
                f"trainer.generate_metric={self.metric} failed with {type(error).__name__}: {error}; it is called with "
                f"the answer {answer!r} and the expected {expected!r}, and must return a number."
            ) from error
        if not math.isfinite(number):
            raise InputError(f"trainer.generate_metric={self.metric} returned {score!r}; expected a finite number.")
        return number


def grader_of(metric: str) -> Grader:
    """Return the grader of a trainer.generate_metric: one of METRICS, or `file.py:function`.

    Raises InputError where there is no such function, and where it cannot grade a right answer.
    """
    if f"val/{metric}" in METRICS:
        return Grader(metric, METRICS[f"val/{metric}"])
    file, _, name = metric.rpartition(":")
    try:
        function = run_path(str(Path(file)), run_name="generate_metric").get(name)
    except Exception as error:
        raise InputError(
            f"trainer.generate_metric={metric}: {file} fails ({type(error).__name__}: {error})."
        ) from error
    if not callable(function):
        raise InputError(f"trainer.generate_metric={metric}: {file} has no function {name}.")
    grader = Grader(metric, function)
    grader.scores([("#### 42", "#### 42")])
    return grader


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


def contains(answer: str, expected: str) -> bool:
    """Return True if the expected final answer stands in the answer: as whole words, or as a number however written."""
    said, wanted = " ".join(answer.rpartition(THOUGHT_END)[2].split()), normal(final_answer(expected))
    if NUMBER.fullmatch(wanted) and wanted:
        return wanted in {normal(number) for number in WRITTEN_NUMBER.findall(said)}
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", said) is not None


def rouge(answer: str, expected: str) -> float:
    """Return ROUGE-L: the F-measure of the longest common subsequence of words, without case.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    said, wanted = (WORD.findall(text.lower()) for text in (answer.rpartition(THOUGHT_END)[2], expected))
    lengths = [0] * (len(wanted) + 1)  # of the longest common subsequence of what was said so far, and wanted[:n]
    for word in said:
        before = 0
        for n, other in enumerate(wanted, start=1):
            above = lengths[n]
            lengths[n] = before + 1 if word == other else max(above, lengths[n - 1])
            before = above
    return 2 * lengths[-1] / (len(said) + len(wanted)) if lengths[-1] else 0.0


METRICS: dict[str, Callable[[str, str], Any]] = {
    "val/exact_match": is_right,
    "val/contains": contains,
    "val/rouge": rouge,
}
"""By their names in metrics.jsonl."""
