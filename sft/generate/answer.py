"""Answer prompts with a model that lies whole on one device, in batches padded on the left.

Generation stops at the tokens of the model's generation_config.json; nothing else of that file counts: what is greedy
here is the most likely token, without penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, TextStreamer

from sft.config.visible import visible
from sft.data.chat.template import apply
from sft.errors import InputError
from sft.model.load import positions_of
from sft.model.pretrained import load_config, weight_files
from sft.model.text_part import model_class
from sft.model.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0: always the most likely one."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0


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
    model: Any = model_class(config).from_pretrained(directory, dtype="auto", trust_remote_code=trust_remote_code)
    return model.to(device or torch.device("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


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


def answer(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    progress: Callable[[Iterable[int], int], Iterable[int]] = lambda starts, total: starts,
    stream: bool = False,
) -> list[str]:
    """Answer every prompt (token ids), in order. Prompts of like length share a batch, so few are padded much.

    stream: print it while it is made; for one prompt. An answer ends where the model has no more positions. Raises
    InputError for a prompt that leaves none.
    """
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    positions = positions_of(model)
    if order and len(prompts[order[0]]) >= positions:
        raise InputError(
            f"a prompt of {len(prompts[order[0]]):,} tokens leaves no room for an answer: the model has {positions:,} "
            "positions (max_position_embeddings); shorten it, or leave it out."
        )
    # Those that end early are answered alone: no answer depends on the others of its batch.
    cramped = [n for n in order if len(prompts[n]) + sampling.max_new_tokens > positions]
    roomy = order[len(cramped) :]
    batches = [[n] for n in cramped] + [roomy[n : n + batch_size] for n in range(0, len(roomy), batch_size)]
    answers = [""] * len(prompts)
    streamer = VisibleStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    for number in progress(range(len(batches)), len(batches)):
        batch = batches[number]
        made = _generate(model, tokenizer, [prompts[n] for n in batch], sampling, streamer)
        for n, text in zip(batch, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
            answers[n] = text
    return answers


@torch.inference_mode()
def _generate(
    model: PreTrainedModel, tokenizer: Any, prompts: list[Sequence[int]], sampling: Sampling, streamer: Any
) -> torch.Tensor:
    longest = max(map(len, prompts))
    stops = model.generation_config.eos_token_id  # pyright: ignore[reportOptionalMemberAccess]
    first_stop = stops[0] if isinstance(stops, list) else stops
    pad = next((token for token in (tokenizer.pad_token_id, first_stop) if token is not None), 0)
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    chosen = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    settings = GenerationConfig(
        max_new_tokens=min(sampling.max_new_tokens, positions_of(model) - longest),
        eos_token_id=stops,
        pad_token_id=pad,
        **(chosen if sampling.temperature else {"do_sample": False}),
    )
    model.generation_config = settings  # else transformers would fill in from the file what is not said here
    output: Any = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), streamer=streamer
    )
    return output[:, longest:]
