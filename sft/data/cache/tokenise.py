"""Rows -> samples -> one Arrow batch of the token cache; what cannot be used is said row by row."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from sft.data.cache.arrow import lists_to_arrow, to_arrow
from sft.data.chat.apply import EndlessTemplateError
from sft.data.chat.documents import encode_documents
from sft.data.chat.encode import encode_batch
from sft.data.chat.messages import READ_KEYS, is_data, is_silent
from sft.data.chat.tokenizer import template_fingerprint, tokenizer_fingerprint
from sft.data.chat.values import is_empty, plain
from sft.data.chat.weights import WEIGHT_KEYS, message_weights
from sft.data.rows.source import Item, RowSource
from sft.data.types import ConfigMistake, Conversation, Document, Row, RowCounts, Supervision
from sft.errors import InputError
from sft.types import Sample

MAX_MESSAGE = 1000  # characters

TAGS = (
    *("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|turn>", "[INST]", "<｜User｜>", "<｜Assistant｜>"),
    *("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|begin_of_text|>", "<｜end▁of▁sentence｜>", "<image>"),
)
STOPS = ("</s>", "<|endoftext|>", "<|end|>", "<eos>")
"""What templates of well-known models write, and with what they end a text; in the middle of one these are common."""

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_weights", pa.list_(pa.float32())),
        ("first_supervised", pa.int32()),  # position of the first trained token
        ("last_supervised", pa.int32()),
        ("row", pa.int64()),  # the number that messages about its row give it: `file:row`
        ("digest", pa.uint64()),  # of ids and weights: equal samples have equal digests
        ("content", pa.uint64()),  # of what the row says, whatever tokenizer and template made of it
    ]
)
DIFFICULTY = pa.field("difficulty", pa.float64())  # where a curriculum asks for it


def schema_of(source: RowSource) -> pa.Schema:
    """Return the columns of the cache of these rows."""
    return SCHEMA if source.difficulty is None else SCHEMA.append(DIFFICULTY)


@dataclass(frozen=True)
class Recipe:
    """All that decides, beside the rows, which tokens a sample has and which of them train."""

    tokenizer: Any
    template_options: Mapping[str, Any]
    supervision: Supervision

    def fingerprint(self) -> list[Any]:
        """Return JSON values by which to compare recipes: equal only if equal rows become equal samples."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> list[Any]:  # once, and not for every file: a large vocabulary takes half a second
        return [
            tokenizer_fingerprint(self.tokenizer),
            template_fingerprint(self.tokenizer, self.template_options),
            asdict(self.supervision),
        ]

    @cached_property
    def special_tokens(self) -> re.Pattern[str]:
        """Return the regular expression that finds any special token of the tokenizer in a text."""
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return re.compile("|".join(map(re.escape, special)) or "(?!)")

    @cached_property
    def foreign_tags(self) -> re.Pattern[str]:
        """Return the regular expression that finds markup of models whose tokenizer and template this is not."""
        known = {token.content for token in self.tokenizer.added_tokens_decoder.values()}
        known |= {"[INST]"} if "<s>" in known else set()  # Llama 2 itself writes it as text
        foreign = [tag for tag in TAGS if tag not in known and tag not in str(self.tokenizer.chat_template)]
        ends = [rf"{re.escape(tag)}\s*\Z" for tag in STOPS if tag not in known]
        return re.compile("|".join([*map(re.escape, foreign), *ends]) or "(?!)")

    def has_today(self) -> bool:
        """Return True if the chat template writes the day on which it is applied, which is not in the fingerprint."""
        return "strftime_now" in str(self.tokenizer.chat_template) and "date_string" not in self.template_options


@dataclass(frozen=True)
class Encoded:
    """Hold what became of some rows: their samples, what is wrong with the rows that gave none, and the counts."""

    batch: pa.RecordBatch  # of schema_of(source), a sample each
    bad: list[str]  # what is wrong with each row that cannot be used
    mistakes: list[str]  # those among them that are the configuration's: no row to leave out
    untrained: list[str]  # rows without samples: nothing in them is trained
    typed: list[str]  # rows whose text, other than the assistant's, spells a special token
    counts: RowCounts


def tokenise(rows: Sequence[Row], source: RowSource, recipe: Recipe) -> Encoded:
    """Turn some rows of `source` into samples; rows that cannot be used are left out and named."""
    usable, items, difficulties, encoded, bad, mistakes, counts = rows, [], [], [], [], [], RowCounts()
    try:
        items = [source.convert(row) for row in rows]
        difficulties = _difficulties(rows, source)
        encoded = encode_items(items, recipe, source.max_length, counts)
    except EndlessTemplateError:
        raise
    except InputError:
        usable, items, difficulties, counts = [], [], [], RowCounts()
        for row in rows:  # each by itself: fixing a file one message at a time is no fun
            try:
                item, difficulty = source.convert(row), _difficulties([row], source)
                encoded += encode_items([item], recipe, source.max_length, counts)
                items.append(item)
                difficulties += difficulty
                usable.append(row)
            except InputError as error:
                bad.append(_bounded(str(error)))
                mistakes += bad[-1:] if isinstance(error, ConfigMistake) else []
    places = [where for where, _ in usable]
    untrained = [where for where, samples in zip(places, encoded, strict=True) if not samples]
    typed = [where for where, item in zip(places, items, strict=True) if _spells(recipe.special_tokens, item)]
    counts.rows, counts.bad_rows, counts.untrained_rows = len(rows), len(bad), len(untrained)
    counts.rows_with_typed_tokens = len(typed)
    counts.rows_with_foreign_tags = sum(_is_said(recipe.foreign_tags, item) for item in items)
    counts.samples = sum(map(len, encoded))
    counts.tokens = sum(len(sample) for samples in encoded for sample in samples)
    return Encoded(_to_arrow(usable, items, encoded, difficulties, source), bad, mistakes, untrained, typed, counts)


def _difficulties(rows: Sequence[Row], source: RowSource) -> list[float]:
    """Return the difficulty of every row, for a curriculum by a column; else []. Raises InputError for a row without
    one.
    """
    return [] if source.difficulty is None else [source.difficulty(row) for row in rows]


def encode_items(items: Sequence[Item], recipe: Recipe, max_length: int, counts: RowCounts) -> list[list[Sample]]:
    """Turn every item into samples. counts: where what happened is added."""
    conversations = [item for item in items if isinstance(item, Conversation)]
    for conversation in conversations:
        _refuse_silence(conversation, recipe.supervision)
        counts.results_as_json += sum(map(is_data, conversation.messages))
    documents = [item for item in items if isinstance(item, Document)]
    of_conversations = iter(encode_batch(conversations, recipe.tokenizer, recipe.supervision, counts))
    of_documents = iter(encode_documents(documents, recipe.tokenizer, max_length) if documents else [])

    def samples_of(item: Item) -> list[Sample]:
        if isinstance(item, Sample):
            return [item]
        return next(of_conversations if isinstance(item, Conversation) else of_documents)

    return [samples_of(item) for item in items]


def _spells(special_tokens: re.Pattern[str], item: Item) -> bool:
    """Return True if text that is not the assistant's spells a special token: the tokenizer would make one of it."""
    if isinstance(item, Sample):
        return False
    if isinstance(item, Document):
        return special_tokens.search(item.text) is not None
    given = (message.get("content") for message in item.messages if message.get("role") != "assistant")
    return any(special_tokens.search(content if isinstance(content, str) else str(content)) for content in given)


def _is_said(tags: re.Pattern[str], item: Item) -> bool:
    """Return True if anybody's words, or the text, hold what the expression finds."""
    if isinstance(item, Sample):
        return False
    said = [item.text] if isinstance(item, Document) else [message.get("content") for message in item.messages]
    return any(tags.search(words) for words in said if isinstance(words, str))


def _refuse_silence(conversation: Conversation, supervision: Supervision) -> None:
    """Refuse an empty answer that is trained: the model would learn to stop where it should speak."""
    silent = [k for k, message in enumerate(conversation.messages) if is_silent(message)]
    if not silent:
        return
    weights = message_weights(conversation.messages, supervision.train_on, conversation.where, given=conversation.given)
    for k in silent:
        if weights[k] > 0:
            content = conversation.messages[k].get("content")
            raise InputError(
                f"{conversation.where}: messages[{k}] (assistant) is empty ({content!r}), expected an answer: the "
                "model would learn to say nothing. Take the row out, or give the message `train`: false."
            )


def _to_arrow(
    rows: Sequence[Row],
    items: Sequence[Item],
    encoded: Sequence[list[Sample]],
    difficulties: Sequence[float],
    source: RowSource,
) -> pa.RecordBatch:
    samples = [sample for of_one_row in encoded for sample in of_one_row]
    before, after = map(len, source.around_number)
    numbers = [int(where[before : len(where) - after]) for where, _ in rows]
    row_of_sample = [number for number, of_one_row in zip(numbers, encoded, strict=True) for _ in of_one_row]
    content_of_sample = [content_of(item) for item, of_one_row in zip(items, encoded, strict=True) for _ in of_one_row]
    supervised = [np.flatnonzero(sample.loss_weights) for sample in samples]
    columns_of_batch = [
        lists_to_arrow([sample.input_ids for sample in samples], np.int32),
        lists_to_arrow([sample.loss_weights for sample in samples], np.float32),
        to_arrow(np.array([positions[0] for positions in supervised], np.int32)),
        to_arrow(np.array([positions[-1] for positions in supervised], np.int32)),
        to_arrow(np.array(row_of_sample, np.int64)),
        to_arrow(np.array([_digest(sample) for sample in samples], np.uint64)),
        to_arrow(np.array(content_of_sample, np.uint64)),
    ]
    if source.difficulty is not None:
        of_sample = [value for value, samples in zip(difficulties, encoded, strict=True) for _ in samples]
        columns_of_batch.append(to_arrow(np.array(of_sample, np.float64)))
    return pa.record_batch(columns_of_batch, schema=schema_of(source))


def _digest(sample: Sample) -> int:
    digest = hashlib.blake2b(sample.input_ids.tobytes(), digest_size=8)
    digest.update(sample.loss_weights.tobytes())
    return int.from_bytes(digest.digest(), "little")


SAID_KEYS = tuple(sorted(READ_KEYS - {*WEIGHT_KEYS, "tool_call_id"}))
"""The keys of a message that are what is said."""


def content_of(item: Item) -> int:
    """Return a hash of what a row says: who says what, and with which tools; not of ids, weights, files or tokens."""
    if isinstance(item, Sample):
        return _digest(item)
    if isinstance(item, Document):
        said: Any = item.text
    else:
        messages = [
            {key: message[key] for key in SAID_KEYS if not is_empty(message.get(key))} for message in item.messages
        ]
        said = [plain(messages, drop_nulls=True), None if is_empty(item.tools) else plain(item.tools, drop_nulls=True)]
    text = json.dumps(said, sort_keys=True, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _bounded(problem: str) -> str:
    """Shorten a message that quotes a long row: its beginning names the row, its end the way out."""
    if len(problem) <= MAX_MESSAGE:
        return problem
    return f"{problem[: MAX_MESSAGE - 300]} … {problem[-280:]}"
