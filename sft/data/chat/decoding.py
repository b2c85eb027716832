"""The proof by decoding, for tokenizers whose tokens are not the bytes of the text: each span's ids must say it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sft.data.chat.proof import MaskError
from sft.data.chat.render import Rendering

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GUARDS = ("", "\n", "\x01")
"""What stands before a reply while it is tokenised alone. Llama 2 begins every text with a space, which the reply has
not behind its prompt; behind a character of its own, it gets none."""

Tokens = tuple[list[int], list[slice]]
"""The ids of a text, and for each of its spans the ids that say it."""


def proven(renderings: Sequence[Rendering], tokens: Sequence[Tokens], backend: Tokenizer) -> list[Tokens]:
    """Return the tokens where they decode to what they stand for, else others that do. Raises MaskError if none do."""
    spans = [ids[s] for ids, slices in tokens for s in slices]
    spoken = iter(backend.decode_batch(spans, skip_special_tokens=False))
    found = []
    for rendering, (ids, slices) in zip(renderings, tokens, strict=True):
        said = [next(spoken) for _ in slices]
        is_said = said == [rendering.text[span.start : span.end] for span in rendering.spans]
        found.append((ids, slices) if is_said else _prove(rendering, ids, slices, backend))
    return found


def _prove(rendering: Rendering, ids: list[int], slices: list[slice], backend: Tokenizer) -> Tokens:
    """Prove the tokens of a text that simple decoding does not give back, slowly. Raises MaskError where it fails.

    Either the tokenizer itself changes text (NFC; sentencepiece eats a leading space), and decoding in context shows
    that it did no more; or a token reaches from the prompt into the reply, and both must be tokenised apart.
    """
    if _first_unproven(rendering, ids, slices, backend) is None:
        return ids, slices
    failures = []
    for guard in GUARDS:
        apart_ids, apart = _tokenise_apart(rendering, backend, guard)
        unproven = _first_unproven(rendering, apart_ids, apart, backend)
        whole, parts = backend.decode_batch([ids, apart_ids], skip_special_tokens=False)
        # Phi-3's <|assistant|> would take the first newlines of the reply into itself: then the parts say more.
        if unproven is None and (parts == whole or _says_all(rendering, apart_ids, apart, backend)):
            return apart_ids, apart
        failures.append(unproven or (rendering.spans[0].turn, whole, parts))
    turn, expected, found = failures[0]
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
    """Return (turn, its text, the text its ids decode to) of the first turn where the two differ."""

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


def _tokenise_apart(rendering: Rendering, backend: Tokenizer, guard: str) -> Tokens:
    """Return ids with a token boundary where each reply starts, as when sampling: there the prompt is tokenised alone.

    guard: stands before every reply while it is tokenised, and goes with its tokens.
    """
    starts = [span.start for span in rendering.spans]
    pieces = [rendering.text[a:b] for a, b in pairwise([0, *starts, len(rendering.text)])]
    guard_tokens = len(backend.encode(guard, add_special_tokens=False).ids)
    prompt, *replies = backend.encode_batch(
        [pieces[0], *(guard + piece for piece in pieces[1:])], add_special_tokens=False
    )
    ids, slices = list(prompt.ids), []
    for encoding, span in zip(replies, rendering.spans, strict=True):
        end = bisect_left(encoding.offsets, (len(guard) + span.end - span.start, 0))
        slices.append(slice(len(ids), len(ids) + end - guard_tokens))
        ids += encoding.ids[guard_tokens:]
    return ids, slices
