"""Open a model directory on one device, and turn messages into the prompt that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TextStreamer

from sft.config.visible import visible
from sft.data.chat.apply import apply
from sft.errors import InputError
from sft.model.pretrained import load_config, weight_files
from sft.model.text_part import model_class
from sft.model.tokenizer import load_tokenizer
from sft.parallel.device import why_on_the_cpu
from sft.parallel.world import log


def open_model(
    directory: Path, *, device: torch.device | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, Any]:
    """Open a model directory: (model on the device, tokenizer). Raises InputError if it is none.

    device: None: the GPU where there is one.
    """
    if not (directory / "config.json").is_file():
        raise InputError(
            f"{directory} is no model directory (no config.json); give the directory of a finished run, a checkpoint's "
            "huggingface/, or write one: python -m sft.export RUN."
        )
    weight_files(directory)  # names what is missing
    tokenizer = load_tokenizer(directory, trust_remote_code=trust_remote_code)
    config = load_config(directory, trust_remote_code=trust_remote_code)
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if reason := why_on_the_cpu():
            log.warning("on the CPU: %s", reason)
    model: Any = model_class(config).from_pretrained(directory, dtype="auto", trust_remote_code=trust_remote_code)
    return model.to(device).eval(), tokenizer


class VisibleStreamer(TextStreamer):
    """Shows an answer while it is made, with nothing in it that a terminal obeys."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print what is complete by now."""
        super().on_finalized_text(visible(text), stream_end)


def chat_prompt(tokenizer: Any, messages: Sequence[dict[str, Any]], **variables: Any) -> list[int]:
    """Return the token ids that ask the model to answer. Raises InputError for a model without a chat template.

    variables: the template's own, such as enable_thinking.
    """
    if not tokenizer.chat_template:
        raise InputError(
            "the model has no chat template, which would turn a question into what it was trained on. Fine-tune it "
            "with one (data.chat_template), put a chat_template.jinja beside its tokenizer.json, or let it continue "
            "plain text: --raw."
        )
    text = apply(tokenizer, tokenizer.get_chat_template(), list(messages), None, variables, "the question", True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]
