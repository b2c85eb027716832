"""One conversation -> Samples whose masks are proven.

render.py makes the texts in which every trained turn stands as the model would sample it, tokens.py finds the tokens
that say the turn, and proves that they say exactly this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data.chat.apply import chat_template
from sft.data.chat.proof import MaskError
from sft.data.chat.render import Rendering, render, template_options
from sft.data.chat.template import turn_shapes
from sft.data.chat.tokenizer import rust_tokenizer, template_fingerprint, tokenizer_fingerprint
from sft.data.chat.tokens import characters_of_tokens, tokens_of
from sft.data.chat.weights import weighted
from sft.data.types import Conversation, RowCounts, Supervision
from sft.types import Sample

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Conversation",
    "MaskError",
    "Supervision",
    "encode",
    "encode_batch",
    "stop_token_ids",
    "template_fingerprint",
    "tokenizer_fingerprint",
]


def encode(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    tools: Sequence[Mapping[str, Any]] | str | None = None,
    train_on: str = "assistant",
    thinking_history: str = "auto",
    **template_options: Any,
) -> list[Sample]:
    """Turn one conversation into samples; only what the model would sample in it is trained (weight above 0).

    One sample, or several where the template rewrites earlier turns: each assistant turn is trained in exactly
    one of them; none where nothing is to be trained. train_on, thinking_history: as data.train_on and
    data.thinking_history. Raises InputError for messages that the template cannot render, MaskError where the
    proof fails.
    """
    conversation = Conversation(messages, tools, template_options)
    return encode_batch([conversation], tokenizer, Supervision(train_on, thinking_history))[0]


def encode_batch(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    supervision: Supervision | None = None,
    counts: RowCounts | None = None,
) -> list[list[Sample]]:
    """Turn conversations into samples as `encode` does, all texts tokenised and decoded at once, in Rust threads.

    counts: where what happened on the way is added.
    """
    counts = RowCounts() if counts is None else counts
    backend = rust_tokenizer(tokenizer)
    renderings = [render(conversation, tokenizer, supervision, counts) for conversation in conversations]
    texts = list(chain.from_iterable(renderings))
    tokens = tokens_of(texts, backend)
    samples = iter(_sample(*of_text, text, backend) for of_text, text in zip(tokens, texts, strict=True))
    rows = [[next(samples) for _ in of_one] for of_one in renderings]
    rows = [weighted(row, conversation.weight) for row, conversation in zip(rows, conversations, strict=True)]
    for unrolled in (row for row in rows if len(row) > 1):
        counts.unrolled_rows += 1
        counts.unrolled_samples += len(unrolled)
        counts.repeated_tokens += sum(_shared_tokens(a, b) for a, b in pairwise(unrolled))
    return rows


def _shared_tokens(a: Sample, b: Sample) -> int:
    """Return how many tokens at the beginning of both are the same."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a.input_ids[:length] != b.input_ids[:length])
    return int(differ[0]) if len(differ) else length


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, supervision: Supervision | None = None, **options: Any
) -> list[int]:
    """Return the ids that end a turn in training, and so must end generation. Not always the tokenizer's eos."""
    rust_tokenizer(tokenizer)
    template = chat_template(tokenizer)
    options = template_options(template, options, supervision or Supervision())
    return turn_shapes(tokenizer, template, options).stop_token_ids


def _sample(ids: list[int], slices: list[slice], rendering: Rendering, backend: Tokenizer) -> Sample:
    loss_weights = np.full(len(ids), rendering.background, np.float32)
    for span, s in zip(rendering.spans, slices, strict=True):
        loss_weights[s] = span.weight
        if span.characters is not None:
            said = characters_of_tokens(ids, s, span, rendering, backend)
            loss_weights[s] *= [span.characters[begin:end].min() for begin, end in said]
    return Sample(np.array(ids, np.int32), loss_weights)
