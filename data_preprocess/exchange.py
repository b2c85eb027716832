"""What a row of any corpus becomes: a prompt, the reply to it, and how to score another reply.

raw row --one function per corpus--> Exchange --to_row--> the columns that SFT and RL read
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

Message = dict[str, Any]

TOOL_CALL = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.string()),
        ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),  # JSON text: keys differ
    ]
)
MESSAGE_FIELDS: dict[str, pa.DataType] = {
    "role": pa.string(),
    "content": pa.string(),
    "reasoning_content": pa.string(),
    "reasoning": pa.string(),
    "thinking": pa.string(),
    "tool_calls": pa.list_(TOOL_CALL),
    "tool_call_id": pa.string(),
    "name": pa.string(),
    "train": pa.bool_(),
    "trainable": pa.bool_(),
    "weight": pa.float64(),
    "loss_weight": pa.float64(),
}
"""The keys of a message that are kept. A file has those that some message in it has, always role and content."""

FURTHER_COLUMNS: dict[str, pa.DataType] = {
    "tools": pa.string(),  # JSON text
    "enable_thinking": pa.bool_(),
    "chat_template_kwargs": pa.string(),  # JSON text
}
"""Columns that a file has where some row of its source has them."""


class UnusableRowError(ValueError):
    """One row cannot be used. Rows are counted by `cause`, so it holds no words of the row; `found` does."""

    def __init__(self, cause: str, found: str):
        super().__init__(f"{cause}: {found}")
        self.cause = cause
        self.found = found


@dataclass(frozen=True)
class Exchange:
    """A prompt (messages, at least one) and the reply to it (an assistant message)."""

    prompt: Sequence[Message]
    reply: Message
    question: str  # what the user asked, in the corpus's own words
    answer: str  # the reply as text
    ability: str
    ground_truth: str  # what RL scores a reply against
    style: str = "model"  # "rule": the ground truth can be compared; "model": it is a reference for a judge
    facts: Mapping[str, str] = field(default_factory=dict)  # further keys of extra_info
    columns: Mapping[str, Any] = field(default_factory=dict)  # some of FURTHER_COLUMNS
    notes: Sequence[str] = ()  # what was changed in the row; counted like the causes of unusable rows


def to_row(exchange: Exchange, *, data_source: str, split: str, index: int) -> dict[str, Any]:
    """One row for both stages: `messages` is what SFT trains, `prompt` and `reward_model` what RL samples and scores.

    messages[:-1] == prompt. index: place of the row in its source, counted from 0.
    """
    return {
        "data_source": data_source,
        "prompt": list(exchange.prompt),
        "ability": exchange.ability,
        "reward_model": {"style": exchange.style, "ground_truth": exchange.ground_truth},
        "extra_info": {
            "split": split,
            "index": index,
            "question": exchange.question,
            "answer": exchange.answer,
            **exchange.facts,
        },
        "messages": [*exchange.prompt, exchange.reply],
        **exchange.columns,
    }


def schema(message_keys: set[str], facts: set[str], columns: set[str]) -> pa.Schema:
    """Return the columns of a file whose rows have these keys; the same keys give the same schema, in one order."""
    message_keys = message_keys | {"role", "content"}
    messages = pa.list_(pa.struct([(key, kind) for key, kind in MESSAGE_FIELDS.items() if key in message_keys]))
    texts = ["question", "answer", *sorted(facts)]
    return pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", messages),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            (
                "extra_info",
                pa.struct([("split", pa.string()), ("index", pa.int64()), *((key, pa.string()) for key in texts)]),
            ),
            ("messages", messages),
            *((key, kind) for key, kind in FURTHER_COLUMNS.items() if key in columns),
        ]
    )


def text(raw: Mapping[str, Any], key: str, *, optional: bool = False) -> str:
    """Return the text in a column, "" where an optional one is absent or null.

    Raises UnusableRowError if there is none.
    """
    value = raw.get(key)
    if optional and value is None:
        return ""
    if key not in raw:
        raise UnusableRowError(f"no column {key!r}", f"found {sorted(raw)}")
    if not isinstance(value, str):
        raise UnusableRowError(f"column {key!r} is not text", f"found {value!r:.80}")
    if not optional and not value.strip():
        raise UnusableRowError(f"column {key!r} is empty", f"found {value!r:.80}")
    return encodable(value)


def joined(raw: Mapping[str, Any], key: str, more_key: str) -> str:
    """Return the text of a column, then, if there is more, an empty line and that of another; either may be blank."""
    more = text(raw, more_key, optional=True)
    if not more.strip():
        return text(raw, key)
    is_blank = isinstance(raw.get(key), str) and not raw[key].strip()
    return more if is_blank else f"{text(raw, key)}\n\n{more}"


def encodable(value: str) -> str:
    """Return the text itself.

    Raises UnusableRowError for half a surrogate pair, which no file and no tokenizer takes.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UnusableRowError(
            "half of a surrogate pair, which is no character", f"found {value[error.start]!a}"
        ) from error
    return value


def json_text(value: Any) -> str:
    """Return the value as JSON, the same text for the same value."""
    return encodable(json.dumps(value, ensure_ascii=False))


def after_hashes(solution: str) -> str | None:
    """Return what stands after the last "#### ", without thousands separators; None without the mark.

    Raises UnusableRowError where nothing stands there.
    """
    _, mark, answer = solution.rpartition("#### ")
    answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer.strip())
    if mark and not answer:
        raise UnusableRowError("no final answer after '#### '", f"found {solution[-80:]!r}")
    return answer if mark else None


def last_boxed(solution: str) -> str | None:
    r"""Return what the last \boxed{...} or \fbox{...} holds, braces within it included; None without one.

    Raises UnusableRowError where it is empty or its brace is never closed: there the solution was cut off.
    """
    boxes = list(re.finditer(r"\\(?:boxed|fbox)(?![A-Za-z])\s*", solution))
    if not boxes:
        return None
    inside = solution[boxes[-1].end() :]
    answer = _braced(inside) if inside.startswith("{") else re.split(r"[$\s]", inside, maxsplit=1)[0]
    if answer is None or not answer.strip():
        raise UnusableRowError(
            r"the last \boxed is empty or not closed", f"found {solution[boxes[-1].start() :]!r:.80}"
        )
    return answer.strip()


def _braced(latex: str) -> str | None:
    """Return the inside of the group that opens the text; None if it does not end. An escaped brace is no brace."""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", latex, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return latex[1 : brace.start()]
    return None
