"""The files written here train through sft by their columns for RL and by their messages, with equal samples."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from data_preprocess import alpaca, chat, dolly, exchange, gsm8k, jsonl, multiturn, openorca, prepare_informal_math
from data_preprocess.convert import convert
from data_preprocess.source import open_source
from sft.data.chat import messages
from sft.data.chat.encode import encode_batch
from sft.data.chat.weights import WEIGHT_KEYS
from sft.data.rows.columns import TEMPLATE_KWARGS_KEY
from sft.data.rows.files import read_rows
from sft.data.rows.formats import to_conversation
from sft.data.rows.recognise import CHATS
from sft.data.rows.speakers import SHAREGPT_ROLES
from sft.data.types import Supervision
from tests.assets import tiny_tokenizer, write_jsonl
from tests.rows import columns

BY_MESSAGES = columns(format="messages", multiturn=True)


def by(prompt_key):
    """Prompt from this column, response from extra_info: the keys that RL's files are trained by."""
    return columns(format="prompt_response", prompt_key=prompt_key, response_key="extra_info")


def test_both_rooms_know_the_same_names():
    """They import nothing from each other, so nothing else keeps the two tables of each name equal."""
    assert chat.ROLES == messages.ROLES
    assert chat.SHAREGPT_ROLES == SHAREGPT_ROLES
    assert chat.REASONING_KEYS == messages.REASONING_KEYS
    assert {*chat.SWITCHES, *chat.WEIGHTS, *chat.OTHER_MASKS} == set(WEIGHT_KEYS)
    assert ("messages", *CHATS) == multiturn.MESSAGES_KEYS
    assert set(exchange.FURTHER_COLUMNS) == {"tools", "enable_thinking", TEMPLATE_KWARGS_KEY}


def samples(path, tokenizer, columns, train_on="assistant"):
    rows = [to_conversation(row, columns, {}) for row in read_rows(path)]
    encoded = encode_batch(rows, tokenizer, Supervision(train_on))
    return [(sample.input_ids.tolist(), sample.loss_weights.tolist()) for of_row in encoded for sample in of_row]


CORPORA = {
    "gsm8k": (gsm8k, {"question": "1 + 1?", "answer": "It is\n#### 2"}),
    "math": (prepare_informal_math, {"problem": "1 + 1?", "solution": r"It is \boxed{2}."}),
    "alpaca": (alpaca, {"instruction": "Add.", "input": "1 and 1", "output": "2"}),
    "dolly": (dolly, {"instruction": "Who?", "context": "It was Ada.", "response": "Ada", "category": "closed_qa"}),
    "openorca": (openorca, {"id": "a.1", "system_prompt": "", "question": "1 + 1?", "response": "2"}),
    "jsonl": (jsonl, {"prompt": "1 + 1?", "response": "2"}),
    "multiturn": (
        multiturn,
        {
            "conversations": [
                *[
                    {"from": "system", "value": "Count."},
                    {"from": "human", "value": "1?"},
                    {"from": "gpt", "value": "1"},
                ],
                *[{"from": "human", "value": "2?"}, {"from": "gpt", "value": "2"}],
            ]
        },
    ),
}


@pytest.fixture(params=CORPORA)
def corpus(request, tmp_path):
    module, row = CORPORA[request.param]
    write_jsonl(tmp_path / "raw/train.jsonl", [row, row])
    source = open_source(tmp_path / "raw", hub_id=None)
    convert(source, module.to_exchange, tmp_path, data_source="d", val_fraction=0)
    return request.param, tmp_path / "train.parquet"


def test_prompt_and_messages_give_equal_samples(corpus):
    _, path = corpus
    tokenizer = tiny_tokenizer()
    expected = samples(path, tokenizer, BY_MESSAGES)
    assert len(expected) == 2 and all(sum(weights) for _, weights in expected)
    name, _ = corpus
    if name == "multiturn":  # replies inside the prompt are given: only the last one is trained
        expected = samples(path, tokenizer, BY_MESSAGES, train_on="last_assistant")
    assert samples(path, tokenizer, by("prompt")) == expected


def test_extra_info_is_the_question_without_the_instruction(corpus):
    """One question and one answer: equal samples too, but for the instruction that RL's prompt of mathematics has."""
    name, path = corpus
    tokenizer = tiny_tokenizer()
    nested, whole = samples(path, tokenizer, by("extra_info")), samples(path, tokenizer, BY_MESSAGES)
    if name == "multiturn":
        assert nested != whole
        return
    if name not in ("gsm8k", "math"):
        assert nested == whole
        return
    for (short_ids, short_weights), (ids, weights) in zip(nested, whole, strict=True):
        trained = [token for token, weight in zip(ids, weights, strict=True) if weight]
        assert [token for token, weight in zip(short_ids, short_weights, strict=True) if weight] == trained
        assert len(short_ids) < len(ids)


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "module"), [("text2sql", multiturn), ("toolcall", jsonl)])
def test_real_conversations_train_as_before(shared, tmp_path, name, module):
    """Tool calls, tools and system prompts come through: the samples are those of the raw file."""
    source = shared / "data" / name
    counts = convert(open_source(source, hub_id=None), module.to_exchange, tmp_path, data_source=name)
    raw = {path.stem: path for path in source.glob("*.jsonl")}
    assert sum(counts.values()) == sum(len(list(read_rows(path))) for path in raw.values())
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers/minimind")
    for split in raw:
        parts = ["train", "test"] if name == "text2sql" else [split]
        written = [sample for part in parts for sample in samples(tmp_path / f"{part}.parquet", tokenizer, BY_MESSAGES)]
        assert sorted(written) == sorted(samples(raw[split], tokenizer, BY_MESSAGES))
    for row in (row for split in counts for _, row in read_rows(tmp_path / f"{split}.parquet")):
        assert row["messages"][:-1] == row["prompt"]
        if name == "toolcall":
            assert isinstance(json.loads(row["tools"]), list)
