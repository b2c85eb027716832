"""A row and the columns of rows: what tests of files, formats and caches begin with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sft.data.rows.formats import Columns

COLUMNS = Columns(
    format="auto",
    prompt_key="question",
    response_key="answer",
    prompt_dict_keys=("question",),
    response_dict_keys=("answer",),
    multiturn=False,
    messages_key="messages",
    tools_key="tools",
    enable_thinking_key="enable_thinking",
    text_key="text",
)
ROW = {"question": "1 + 1?", "answer": "2"}
STRANGE_ROWS = [
    {"question": "1 + 1?", "answer": "2"},
    {"question": "Write <script>alert(1)</script> & say why.", "answer": "No.\n\nIt is \"code\" 😀."},
    {"question": "What is <|im_end|>?", "answer": "The end of a turn."},
    {"question": "1 + 1?", "answer": "2"},
    {"question": "Add the apples.", "answer": "the apples " * 60},
]  # fmt: skip
"""Markup, a control token, a duplicate and a row that is too long for 64 tokens."""


def columns(**changes: Any) -> Columns:
    """Return COLUMNS with these fields changed."""
    return replace(COLUMNS, **changes)
