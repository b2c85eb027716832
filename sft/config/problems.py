"""Collect what is wrong with a configuration: all problems at once, each warning once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft.errors import InputError


class ConfigError(InputError):
    """Everything that is wrong with a configuration. `problems`: one sentence each, with a way out."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(problems)

    def __str__(self) -> str:
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        return "\n".join([f"{count} in the configuration:", *(f"  {n}. {p}" for n, p in enumerate(self.problems, 1))])


class Report:
    """Collects problems, passes warnings on."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.problems: list[str] = []
        self.warn = warn

    def problem(self, sentence: str) -> None:
        self.problems.append(sentence)


def shown(value: Any) -> str:
    """Write a value as a user would type it; text in quotes, so that "12" and 12 differ."""
    return json.dumps(value, ensure_ascii=False, default=str)


def multiples_around(unit: int, number: int) -> list[int]:
    """Return the positive multiples of `unit` next to `number`: (4, 10) -> [8, 12]."""
    below = number // unit * unit
    return [multiple for multiple in (below, below + unit) if multiple]


def divisors_around(whole: int, number: int) -> list[int]:
    """Return the divisors of `whole` next to `number`: (32, 5) -> [4, 8]."""
    divisors = [candidate for candidate in range(1, whole + 1) if whole % candidate == 0]
    below = [divisor for divisor in divisors if divisor < number]
    above = [divisor for divisor in divisors if divisor > number]
    return below[-1:] + above[:1]


def choices(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def from_here(path: Path) -> str:
    """Return " (looked for <full path>)" for a relative path: the user may have another working directory in mind."""
    return "" if path.is_absolute() else f" (looked for {path.absolute()})"
