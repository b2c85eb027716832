"""Tokenizers of the chat room's tests, real templates among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.assets import CHATML, tiny_tokenizer
from tests.chats import THINKING


@pytest.fixture(scope="module")
def chatml() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(CHATML)


@pytest.fixture(scope="module")
def thinking() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(THINKING)


@pytest.fixture(scope="module")
def minimind(shared: Path) -> Any:
    return AutoTokenizer.from_pretrained(shared / "tokenizers/minimind")


def real_template(shared: Path, name: str) -> str:
    return json.loads((shared / f"tokenizers/{name}/tokenizer_config.json").read_text())["chat_template"]


@pytest.fixture(scope="module")
def qwen25(shared: Path) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(real_template(shared, "qwen2.5"))


@pytest.fixture(scope="module")
def qwen3(shared: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers/minimind")
    tokenizer.chat_template = real_template(shared, "qwen3")
    return tokenizer
