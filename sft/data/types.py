"""The nouns that the data rooms share: a row, what it says, and what of it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sft.errors import InputError

Row = tuple[str, dict[str, Any]]
"""(where, cells): `where` names the row in messages ("train.jsonl:12"), cells are its columns by name."""


class RowError(InputError):
    """One row cannot be used; the message names file:row, what was found and what was expected."""


class ConfigMistake(RowError):
    """A row shows that the configuration is wrong for its file: data.bad_rows=drop does not excuse it."""


@dataclass(frozen=True)
class Conversation:
    """The chat of one row. `where` ("train.jsonl:12") names it in messages.

    given:   how many messages stand in the row's prompt column: they are history, whoever says them
    prefill: of messages[given], an assistant's, the words that its content begins with and that the prompt gave
    weight:  of the whole row, by which those of its messages are multiplied
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    where: str = "conversation"
    given: int = 0
    prefill: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Document:
    """The text of one row, which is no conversation. `where` ("wiki.jsonl:12") names it in messages."""

    text: str
    where: str
    weight: float = 1.0


@dataclass(frozen=True)
class Supervision:
    """What is trained: the values of data.train_on and data.thinking_history."""

    train_on: str = "assistant"
    thinking_history: str = "auto"


@dataclass
class RowCounts:
    """What happened to rows on their way to samples. Counted part by part; the parts add up.

    A new count is a field here. Whoever sees it happen adds to it, and data/cache/facts.py says it at the start.
    """

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    bad_rows: int = 0  # cannot be used
    untrained_rows: int = 0  # without samples: nothing in them is trained
    rows_with_typed_tokens: int = 0  # a special token is spelled outside the assistant's words
    rows_with_foreign_tags: int = 0  # markup of another model's template, which this tokenizer takes for text
    results_as_json: int = 0  # tool results that are objects or lists
    turns_left_out: int = 0  # by thinking_history=last
    thoughts_left_out: int = 0  # by the template, with train_on=all
    thoughts_never_opened: int = 0  # </think> without <think>, taken for a thought
    unrolled_rows: int = 0  # that became several samples, since the template rewrites earlier turns
    unrolled_samples: int = 0  # those samples
    repeated_tokens: int = 0  # that two neighbours of them both begin with

    def add(self, other: RowCounts) -> None:
        """Add the counts of another part to these."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)
