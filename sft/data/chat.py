"""One conversation -> Samples whose masks are proven.

A sample's text is tokenised once; the tokens of a turn are found by their character offsets, and proven by decoding
them: they must say exactly what the model would sample.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data.proof import MaskError
from sft.data.render import Conversation, Rendering, render, template_options
from sft.data.template import chat_template, turn_shapes
from sft.data.turns import Span
from sft.data.weights import Supervision
from sft.errors import InputError
from sft.types import Sample

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
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

Tokens = tuple[list[int], list[slice]]
"""The ids of a text, and for each of its spans the ids that say it."""


def encode(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    tools: Sequence[Mapping[str, Any]] | str | None = None,
    train_on: str = "assistant",
    thinking_history: str = "auto",
    **template_options: Any,
) -> list[Sample]:
    """The samples of one conversation; trained (weight above 0) is only what the model would sample in it.

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
    counts: Counter[str] | None = None,
) -> list[list[Sample]]:
    """The samples of every conversation. As `encode`, tokenising and decoding all texts at once, in Rust threads.

    counts: where what happened on the way is added, by name: "turns left out" (thinking_history=last), "thoughts left
    out" (train_on=all), "unrolled rows" with their "unrolled samples" and "repeated tokens".
    """
    backend = rust_tokenizer(tokenizer)
    renderings = [render(conversation, tokenizer, supervision, counts) for conversation in conversations]
    samples = iter(_samples(list(chain.from_iterable(renderings)), backend))
    rows = [[next(samples) for _ in of_one] for of_one in renderings]
    if counts is not None:
        for unrolled in (row for row in rows if len(row) > 1):
            counts["unrolled rows"] += 1
            counts["unrolled samples"] += len(unrolled)
            counts["repeated tokens"] += sum(_shared_tokens(a, b) for a, b in pairwise(unrolled))
    return rows


def _shared_tokens(a: Sample, b: Sample) -> int:
    """How many tokens both begin with."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a.input_ids[:length] != b.input_ids[:length])
    return int(differ[0]) if len(differ) else length


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, supervision: Supervision | None = None, **options: Any
) -> list[int]:
    """The ids that end a turn in training, and so must end generation. Not always the tokenizer's eos."""
    rust_tokenizer(tokenizer)
    template = chat_template(tokenizer)
    options = template_options(template, options, supervision or Supervision())
    return turn_shapes(tokenizer, template, options).stop_token_ids


def template_fingerprint(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> str:
    """Equal if messages become equal text: sha256 of the template, its options and the special tokens."""
    return _sha256([tokenizer.chat_template, dict(options), tokenizer.special_tokens_map])


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal if text becomes equal ids, in any process: sha256 of the tokenizer's whole definition."""
    return _sha256([json.loads(rust_tokenizer(tokenizer).to_str()), tokenizer.special_tokens_map])


def rust_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer in Rust, which knows offsets. Raises InputError if there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"{type(tokenizer).__name__} knows no character offsets, by which masks are found; "
            "use a tokenizer with a tokenizer.json (AutoTokenizer converts most with use_fast=True)."
        )
    # Left by tokenizer.json or by the last caller, these would cut, pad or respell texts unseen.
    # transformers sets them anew for every call of its own.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    return backend


def _samples(renderings: Sequence[Rendering], backend: Tokenizer) -> list[Sample]:
    encodings = backend.encode_batch([rendering.text for rendering in renderings], add_special_tokens=False)
    prompt_ends = _PromptEnds(backend)
    tokens: list[Tokens] = [
        prompt_ends.as_served(rendering, encoding.ids, _Offsets(encoding))
        for rendering, encoding in zip(renderings, encodings, strict=True)
    ]
    spoken = iter(backend.decode_batch([ids[s] for ids, slices in tokens for s in slices], skip_special_tokens=False))
    samples = []
    for rendering, (ids, slices) in zip(renderings, tokens, strict=True):
        said = [next(spoken) for _ in slices]
        if said != [rendering.text[span.start : span.end] for span in rendering.spans]:
            ids, slices = _prove(rendering, ids, slices, backend)
        samples.append(_sample(ids, slices, rendering))
    return samples


class _Offsets(Sequence[tuple[int, int]]):
    """The characters [start, end) of every token. Few are asked for, and a list of all costs more than the masks."""

    def __init__(self, encoding: Encoding):
        self._at, self._length = encoding.token_to_chars, len(encoding)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, n: Any) -> Any:
        return self._at(n)


def _slices(offsets: Sequence[tuple[int, int]], spans: list[Span]) -> list[slice]:
    # A token belongs to the span in which it starts. Several tokens of one character share its offset.
    return [slice(bisect_left(offsets, (span.start, 0)), bisect_left(offsets, (span.end, 0))) for span in spans]


class _PromptEnds:
    """The last tokens of prompts, as a server makes them: of the prompt alone, before anything is sampled.

    With the reply behind it, "\\n\\n" may become two tokens that are one in the prompt. Only what follows the last
    tag can differ, and that is a handful of strings.
    """

    def __init__(self, backend: Tokenizer):
        self._backend = backend
        self._tags = set(backend.get_added_tokens_decoder())
        self._served: dict[str, list[int]] = {}

    def as_served(self, rendering: Rendering, ids: list[int], offsets: Sequence[tuple[int, int]]) -> Tokens:
        """The ids of the text, and for each of its spans the ids that say it."""
        slices = _slices(offsets, rendering.spans)
        for n, span in enumerate(rendering.spans):
            start, shift = slices[n].start, len(ids) - len(offsets)
            if not span.is_sampled or not start or offsets[start - shift - 1][1] != span.start:
                continue  # a token that reaches into the reply is a matter for _prove
            tag = next((at for at in range(start - 1, 0, -1) if ids[at] in self._tags), 0)
            end_of_prompt = rendering.text[offsets[tag - shift][0] : span.start]
            served = self._served.get(end_of_prompt) or self._tokenise(end_of_prompt)
            if served != ids[tag:start]:
                ids = ids[:tag] + served + ids[start:]
                longer = len(served) - (start - tag)
                slices[n:] = [slice(s.start + longer, s.stop + longer) for s in slices[n:]]
        return ids, slices

    def _tokenise(self, end_of_prompt: str) -> list[int]:
        self._served[end_of_prompt] = self._backend.encode(end_of_prompt, add_special_tokens=False).ids
        return self._served[end_of_prompt]


def _sample(ids: list[int], slices: list[slice], rendering: Rendering) -> Sample:
    loss_weights = np.full(len(ids), rendering.background, np.float32)
    for span, s in zip(rendering.spans, slices, strict=True):
        loss_weights[s] = span.weight
    return Sample(np.array(ids, np.int32), loss_weights)


def _prove(rendering: Rendering, ids: list[int], slices: list[slice], backend: Tokenizer) -> Tokens:
    """The slow road, for a text that simple decoding does not give back. Raises MaskError at its end.

    Either the tokenizer itself changes text (NFC; sentencepiece eats a leading space), and decoding in context shows
    that it did no more; or a token reaches from the prompt into the reply, and both must be tokenised apart.
    """
    if _first_unproven(rendering, ids, slices, backend) is None:
        return ids, slices
    apart_ids, apart = _tokenise_apart(rendering, backend)
    unproven = _first_unproven(rendering, apart_ids, apart, backend)
    whole, parts = backend.decode_batch([ids, apart_ids], skip_special_tokens=False)
    # Phi-3's <|assistant|> would take the first newlines of the reply into itself: then the parts say more.
    if unproven is None and (parts == whole or _says_all(rendering, apart_ids, apart, backend)):
        return apart_ids, apart
    turn, expected, found = unproven or (rendering.spans[0].turn, whole, parts)
    raise MaskError(
        rendering.where,
        turn,
        "the tokens of the reply do not decode to its text",
        expected=expected,
        found=found,
        way_out="This tokenizer does not keep such text as it is: change the row, or use a byte-level tokenizer.",
    )


def _first_unproven(
    rendering: Rendering, ids: list[int], slices: list[slice], backend: Tokenizer
) -> tuple[int, str, str] | None:
    """(turn, its text, the text its ids decode to) of the first turn where, for this tokenizer, the two differ."""

    def decode(ids: list[int]) -> str:
        return backend.decode(ids, skip_special_tokens=False)

    def canonical(text: str) -> str:
        return backend.normalizer.normalize_str(text) if backend.normalizer else text

    for span, s in zip(rendering.spans, slices, strict=True):
        alone, before, until = decode(ids[s]), decode(ids[: s.start]), decode(ids[: s.stop])
        in_context = until.removeprefix(before)
        expected = rendering.text[span.start : span.end]
        if canonical(expected) not in (canonical(alone), canonical(in_context)):
            return span.turn, expected, alone
    return None


def _says_all(rendering: Rendering, ids: list[int], slices: list[slice], backend: Tokenizer) -> bool:
    """Whether every turn, decoded with all that stands before it, is its text to the character."""

    def decode(end: int) -> str:
        return backend.decode(ids[:end], skip_special_tokens=False)

    texts = [rendering.text[span.start : span.end] for span in rendering.spans]
    return all(decode(s.stop) == decode(s.start) + said for s, said in zip(slices, texts, strict=True))


def _tokenise_apart(rendering: Rendering, backend: Tokenizer) -> Tokens:
    """Ids with a token boundary where each reply starts, as when sampling: there the prompt is tokenised alone."""
    starts = [span.start for span in rendering.spans]
    pieces = [rendering.text[a:b] for a, b in pairwise([0, *starts, len(rendering.text)])]
    encodings = backend.encode_batch(pieces, add_special_tokens=False)
    begins = accumulate(len(encoding.ids) for encoding in encodings[:-1])
    slices = [
        slice(begin, begin + bisect_left(encoding.offsets, (span.end - span.start, 0)))
        for begin, encoding, span in zip(begins, encodings[1:], rendering.spans, strict=True)
    ]
    return [token_id for encoding in encodings for token_id in encoding.ids], slices


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
