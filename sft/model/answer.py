"""Answer prompts token by token: in batches padded on the left, with the model's own cache of keys and values.

Generation stops at the tokens of the model's generation_config; nothing else of it counts: what is greedy here is the
most likely token, without penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from sft.errors import InputError
from sft.model.load import positions_of


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0: always the most likely one."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0


def answer(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    device: torch.device | None = None,
    progress: Callable[[Iterable[int], int], Iterable[int]] = lambda starts, total: starts,
    streamer: Any = None,
) -> list[str]:
    """Answer every prompt (token ids), in order. Prompts of like length share a batch, so few are padded much.

    device: where the model computes; None: where its weights lie
    streamer: is told every token while the answer is made; for one prompt

    An answer ends where the model has no more positions. Raises InputError for a prompt that leaves none.
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
    for number in progress(range(len(batches)), len(batches)):
        batch = batches[number]
        made = _generate(model, tokenizer, [prompts[n] for n in batch], sampling, device or model.device, streamer)
        for n, text in zip(batch, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
            answers[n] = text
    return answers


@torch.no_grad()  # inference mode would leave tensors behind, in a model that trains, of which no gradient can be taken
def _generate(
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: list[Sequence[int]],
    sampling: Sampling,
    device: torch.device,
    streamer: Any,
) -> torch.Tensor:
    """Return the new tokens of every prompt, int64 [prompts, at most max_new_tokens], padded behind the stop."""
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
        input_ids=ids.to(device), attention_mask=mask.to(device), streamer=streamer
    )
    return output[:, longest:]
