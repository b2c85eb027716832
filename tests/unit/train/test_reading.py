"""The tokenizer of a run: its template begins with bos where it must, and one line says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from sft.config import load_config
from sft.errors import InputError
from sft.train.reading import open_tokenizer
from tests.assets import CHATML, tiny_tokenizer


@pytest.fixture
def model_with_bos(tmp_path: Path) -> Path:
    """A directory whose tokenizer adds bos to plain text, and has no chat template."""
    tokenizer = tiny_tokenizer(None)
    tokenizer.add_tokens(["<s>"], special_tokens=True)
    tokenizer.bos_token = "<s>"
    bos = ("<s>", tokenizer.convert_tokens_to_ids("<s>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[bos])
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def opened(model: Path, *overrides: str):
    rows = model / "rows.jsonl"
    rows.touch()
    return open_tokenizer(
        load_config([f"model.partial_pretrain={model}", f"data.train_files={rows}", "data.val_files=null", *overrides]),
        model,
    )


@pytest.mark.parametrize("given", ["null", "chatml", "alpaca", "instruction_response"])
def test_a_template_of_ours_begins_with_the_bos_that_the_tokenizer_adds(model_with_bos, given, caplog):
    caplog.set_level(logging.INFO)
    tokenizer, template, _ = opened(model_with_bos, f"data.chat_template={given}")
    assert template == tokenizer.chat_template and template.startswith("{{- bos_token }}")
    assert caplog.text.count("bos <s>: added to plain text, written in chats; a turn ends with <|im_end|>") == 1


def test_a_template_of_the_processor_alone_is_used_and_saved_with_the_tokenizer(model_with_bos, caplog):
    caplog.set_level(logging.INFO)
    (model_with_bos / "chat_template.json").write_text(json.dumps({"chat_template": "{{- bos_token }}" + CHATML}))
    tokenizer, template, added = opened(model_with_bos)
    assert template == tokenizer.chat_template == "{{- bos_token }}" + CHATML and not added
    assert "that of the processor is used, and saved with the tokenizer" in caplog.text


def test_a_bos_that_is_asked_for_and_not_added_is_said(model_with_bos, caplog):
    opened(model_with_bos)
    assert "add_bos_token" not in caplog.text
    file = model_with_bos / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"add_bos_token": True}))
    opened(model_with_bos)
    assert "add_bos_token" not in caplog.text  # it is added
    file = model_with_bos / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    opened(model_with_bos)
    assert "text rows begin without <s>" in caplog.text


def test_a_template_of_the_users_that_leaves_bos_out_or_doubles_it_is_an_error(model_with_bos):
    file = model_with_bos / "own.jinja"
    file.write_text(CHATML)
    with pytest.raises(InputError, match=r"data\.chat_template writes no <s>"):
        opened(model_with_bos, f"data.chat_template={file}")
    file.write_text("{{ bos_token }}{{ bos_token }}" + CHATML)
    with pytest.raises(InputError, match="begins with 2 <s>"):
        opened(model_with_bos, f"data.chat_template={file}")


def test_the_models_own_template_may_leave_bos_out_and_that_is_said(model_with_bos, caplog):
    caplog.set_level(logging.INFO)
    (model_with_bos / "chat_template.jinja").write_text(CHATML)
    assert opened(model_with_bos)[1] is None
    assert "bos <s>: added to plain text, missing in chats" in caplog.text
