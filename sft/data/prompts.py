"""What rows ask: the prompt of the last answer in each, as the model is given it, and the answer they expect.

A prompt is the row's own conversation up to its last assistant turn, rendered with the generation prompt; tools,
thinking switch and template options are the row's, as in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from sft.config import DataConfig
from sft.data.chat.render import chat_in_template
from sft.data.chat.tokenizer import rust_tokenizer
from sft.data.rows.entries import parts_of_files, parts_of_mixture
from sft.data.rows.source import Item
from sft.data.types import Conversation, Document, RowError, Supervision
from sft.errors import InputError
from sft.types import Sample


@dataclass(frozen=True)
class Prompt:
    """One question. `where` ("val.jsonl:12") is its row, `part` the entry of data.val_files that it came with."""

    where: str
    part: str
    text: str
    input_ids: list[int]
    expected: str


def read_prompts(
    config: DataConfig,
    files: tuple[str, ...] | None,
    tokenizer: Any,
    bad: list[str],
    *,
    max_rows: int | None = None,
    seed: int = 0,
) -> Iterator[Prompt]:
    """Return the prompts of the first rows of these files, in order; files None: of data.mixture, drawn by seed.

    Rows that ask nothing or expect no answer are left out, and named in `bad`. max_rows: None reads all.
    """

    def say_nothing(line: str) -> None:
        """Return what there is to say of the files was said when they were tokenised."""

    if files is None:
        parts = parts_of_mixture(config, seed, tokenizer, say_nothing)
    else:
        parts = parts_of_files(config, files, tokenizer, say_nothing)
    supervision = Supervision(config.train_on, config.thinking_history)
    rows = ((part, source, row) for part in parts for source in part.sources for row in source.read())
    for part, source, row in islice(rows, max_rows):
        try:
            yield prompt_of(source.convert(row), tokenizer, supervision, where=row[0], part=part.name)
        except InputError as error:
            bad.append(str(error))


def those_that_fit(prompts: Iterable[Prompt], max_length: int, too_long: list[str]) -> Iterator[Prompt]:
    """Prompts of at most max_length tokens, the longest that training computes; the others are named in `too_long`."""
    for prompt in prompts:
        if len(prompt.input_ids) <= max_length:
            yield prompt
        else:
            tokens = f"{len(prompt.input_ids):,} tokens"
            too_long.append(f"{prompt.where}: a prompt of {tokens}, longer than data.max_length={max_length}.")


def prompt_of(item: Item, tokenizer: Any, supervision: Supervision, *, where: str, part: str = "") -> Prompt:
    """Return what one row asks. Raises InputError naming the row if there is no answer in it to ask for."""
    if isinstance(item, Document):
        raise RowError(f"{where}: plain text asks nothing; expected a prompt and its response, or messages.")
    if isinstance(item, Sample):
        return _of_sample(item, tokenizer, where, part)
    return _of_conversation(item, tokenizer, supervision, where, part)


def _of_conversation(item: Conversation, tokenizer: Any, supervision: Supervision, where: str, part: str) -> Prompt:
    chat = chat_in_template(item, tokenizer, supervision)
    roles = [message["role"] for message in chat.messages]
    if "assistant" not in roles[1:]:
        found = ", ".join(roles) or "none"
        raise RowError(
            f"{where}: no answer to compare with; expected an assistant message after the question (roles: {found})."
        )
    last = len(roles) - 1 - roles[::-1].index("assistant")
    text = chat.text(last, prompt=True)
    expected = chat.messages[last]["content"]
    if chat.messages[last].get("tool_calls"):  # what the template makes of words and calls
        whole, span = chat.turn(last, 1.0)
        expected = whole[span.start : span.end].removesuffix(chat.shapes.calls.stop)
    if not expected.strip():
        raise RowError(f"{where}: messages[{last}] (assistant) is empty; expected an answer to compare with.")
    ids = rust_tokenizer(tokenizer).encode(text, add_special_tokens=False).ids
    return Prompt(where, part, text, ids, expected)


def _of_sample(sample: Sample, tokenizer: Any, where: str, part: str) -> Prompt:
    """Of a sample that a class of the user's has tokenised: the last stretch of tokens that carry loss is expected."""
    trained = sample.loss_weights > 0
    ends = np.flatnonzero(trained)
    before = np.flatnonzero(~trained[: ends[-1]]) if len(ends) else []
    if not len(before):
        raise RowError(f"{where}: no token stands before the trained ones, so nothing is asked.")
    start = int(before[-1]) + 1
    ids = sample.input_ids.tolist()
    expected = tokenizer.decode(ids[start : int(ends[-1]) + 1], skip_special_tokens=True)
    return Prompt(where, part, tokenizer.decode(ids[:start]), ids[:start], expected)
