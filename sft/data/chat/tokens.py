"""Texts -> token ids, and the ids that say each span. A text is tokenised once, and nothing about it is guessed.

    by bytes     Byte-level tokenizers: where the bytes of the tokens, one after the other, are those of the text, it
                 is a matter of counting which tokens say a span, and the proof is done.
    by offsets   All others: the tokenizer tells from which characters it made a token, and decoding proves it.

Then the end of every prompt is made what a server makes of it: the tokens of the prompt alone, before anything is
sampled. With the reply behind it, "\\n\\n" may become two tokens that are one in the prompt.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from sft.data.chat.decoding import Tokens, proven
from sft.data.chat.proof import MaskError
from sft.data.chat.render import Rendering
from sft.data.chat.turns import Span

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


@dataclass(frozen=True)
class _PromptEnd:
    """What stands before the span number `span`: `text`, said by ids[tag:start]; a tag is an added token."""

    span: int
    tag: int
    start: int
    text: str


@dataclass(frozen=True)
class _Located:
    """The ids of a text as a whole, and those in which each of its spans starts and ends."""

    ids: list[int]
    slices: list[slice]
    prompt_ends: list[_PromptEnd]
    is_proven: bool


def tokens_of(renderings: Sequence[Rendering], backend: Tokenizer) -> list[Tokens]:
    """Return the ids of every text as the model would meet them, and for each of its spans those that decode to it.

    Raises MaskError for a text that the tokenizer does not keep.
    """
    located = _locate(renderings, backend)
    tokens = _as_served(located, backend)
    unproven = [n for n, of_text in enumerate(located) if not of_text.is_proven]
    decoded = proven([renderings[n] for n in unproven], [tokens[n] for n in unproven], backend)
    for n, of_text in zip(unproven, decoded, strict=True):
        tokens[n] = of_text
    return tokens


def _locate(renderings: Sequence[Rendering], backend: Tokenizer) -> list[_Located]:
    tags = frozenset(backend.get_added_tokens_decoder())
    located: list[_Located | None] = [None] * len(renderings)
    if (token_bytes := _token_bytes(backend)) is not None:
        encodings = backend.encode_batch_fast([rendering.text for rendering in renderings], add_special_tokens=False)
        located = [
            _by_bytes(rendering, encoding.ids, token_bytes, tags)
            for rendering, encoding in zip(renderings, encodings, strict=True)
        ]
    rest = [rendering for rendering, of_text in zip(renderings, located, strict=True) if of_text is None]
    encodings = backend.encode_batch([rendering.text for rendering in rest], add_special_tokens=False)
    by_offsets = map(lambda rendering, encoding: _by_offsets(rendering, encoding, tags), rest, encodings)
    return [of_text or next(by_offsets) for of_text in located]


def _by_bytes(rendering: Rendering, ids: list[int], token_bytes: _TokenBytes, tags: frozenset[int]) -> _Located | None:
    """Find the tokens of every span by counting bytes; None where bytes differ, or a token crosses its edge."""
    text, pieces = rendering.text, list(map(token_bytes.__getitem__, ids))
    if b"".join(pieces) != text.encode():
        return None
    begins = list(accumulate(map(len, pieces), initial=0))
    slices, prompt_ends = [], []
    for n, span in enumerate(rendering.spans):
        start_byte, end_byte = len(text[: span.start].encode()), len(text[: span.end].encode())
        start, end = bisect_left(begins, start_byte), bisect_left(begins, end_byte)
        if (begins[start], begins[end]) != (start_byte, end_byte):
            return None
        slices.append(slice(start, end))
        if span.is_sampled and start:
            tag = _last_tag(ids, start, tags)
            prompt_ends.append(_PromptEnd(n, tag, start, b"".join(pieces[tag:start]).decode()))
    return _Located(ids, slices, prompt_ends, is_proven=True)


def _by_offsets(rendering: Rendering, encoding: Encoding, tags: frozenset[int]) -> _Located:
    # A token belongs to the span in which it starts. Several tokens of one character share its offset.
    ids, offsets = encoding.ids, _Offsets(encoding)
    slices, prompt_ends = [], []
    for n, span in enumerate(rendering.spans):
        start, end = bisect_left(offsets, (span.start, 0)), bisect_left(offsets, (span.end, 0))
        slices.append(slice(start, end))
        # A token that reaches into the reply is left to the proof.
        if span.is_sampled and start and offsets[start - 1][1] == span.start:
            tag = _last_tag(ids, start, tags)
            prompt_ends.append(_PromptEnd(n, tag, start, rendering.text[offsets[tag][0] : span.start]))
    return _Located(ids, slices, prompt_ends, is_proven=False)


def _last_tag(ids: list[int], end: int, tags: frozenset[int]) -> int:
    """Return where in ids[:end] the last tag stands, 0 without one; a reply can change only what follows it."""
    return next((at for at in range(end - 1, 0, -1) if ids[at] in tags), 0)


def _as_served(located: Sequence[_Located], backend: Tokenizer) -> list[Tokens]:
    """Return the same with the end of every prompt tokenised by itself: a handful of texts, but without tags all
    prompts.
    """
    texts = list({end.text: None for of_text in located for end in of_text.prompt_ends})
    encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
    served = {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}
    tokens = []
    for of_text in located:
        ids, slices = of_text.ids, of_text.slices
        for end in reversed(of_text.prompt_ends):  # so that what stands before it keeps its place
            prompt = served[end.text]
            if prompt != ids[end.tag : end.start]:
                ids = ids[: end.tag] + prompt + ids[end.start :]
                longer = len(prompt) - (end.start - end.tag)
                moved = [slice(s.start + longer, s.stop + longer) for s in slices[end.span :]]
                slices = slices[: end.span] + moved
        tokens.append((ids, slices))
    return tokens


def characters_of_tokens(
    ids: list[int], s: slice, span: Span, rendering: Rendering, backend: Tokenizer
) -> list[tuple[int, int]]:
    """Return which characters [begin, end) of a span each of its tokens ids[s] says, all or a part of them.

    Raises MaskError where decoding does not tell it.
    """
    text = rendering.text[span.start : span.end]
    token_bytes = _token_bytes(backend)
    pieces = [token_bytes[token_id] for token_id in ids[s]] if token_bytes is not None else []
    if b"".join(pieces) == text.encode():
        of_byte = [n for n, character in enumerate(text) for _ in character.encode()]
        ends = list(accumulate(map(len, pieces)))
        return [(of_byte[end - len(piece)], of_byte[end - 1] + 1) for piece, end in zip(pieces, ends, strict=True)]
    before = len(backend.decode(ids[: s.start], skip_special_tokens=False))
    until = [backend.decode(ids[:n], skip_special_tokens=False)[before:] for n in range(s.start + 1, s.stop + 1)]
    if until[-1:] != [text]:
        raise MaskError(
            rendering.where,
            span.turn,
            "its characters have weights of their own, and the tokens do not tell which characters they say",
            expected=text,
            found="".join(until[-1:]),
            way_out="Take the weights of characters out of this message, or use a byte-level tokenizer.",
        )
    # Bytes that are half of a character decode to a mark in its place: all tokens of a character say it.
    ends = list(accumulate((len(said) if text.startswith(said) else 0 for said in until), max))
    return [(begin, max(end, begin + 1)) for begin, end in zip([0, *ends], ends, strict=False)]


class _Offsets(Sequence[tuple[int, int]]):
    """The characters [start, end) of every token. Few are asked for, and a list of all costs more than the masks."""

    def __init__(self, encoding: Encoding):
        self._at, self._length = encoding.token_to_chars, len(encoding)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, n: Any) -> Any:
        return self._at(n)


_SHOWN_AS_THEMSELVES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _SHOWN_AS_THEMSELVES]
_BYTE_OF = {chr(byte): byte for byte in _SHOWN_AS_THEMSELVES} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
"""Byte-level tokenizers write a token as one printable character for each of its bytes (GPT-2's alphabet)."""


class _TokenBytes(dict[int, bytes]):
    """The bytes that an id decodes to; those of a whole vocabulary would take longer than most files."""

    def __init__(self, backend: Tokenizer):
        super().__init__()
        self._backend = backend

    def __missing__(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id) or ""
        is_spelt = all(character in _BYTE_OF for character in token)
        self[token_id] = bytes(_BYTE_OF[character] for character in token) if is_spelt else token.encode()
        return self[token_id]


@lru_cache(maxsize=8)
def _token_bytes(backend: Tokenizer) -> _TokenBytes | None:
    """Return what ids decode to in a byte-level tokenizer.

    None: the bytes of its tokens are not, in general, the text's.
    """
    from tokenizers.decoders import ByteLevel

    takes_spaces_along = any(tag.lstrip or tag.rstrip for tag in backend.get_added_tokens_decoder().values())
    return _TokenBytes(backend) if isinstance(backend.decoder, ByteLevel) and not takes_spaces_along else None
