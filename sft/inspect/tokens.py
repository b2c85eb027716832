"""Turn a sample into what a person reads: the text of every token, and runs of tokens with one weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sft.data.order.fit import FittedSamples

MOST_TOKENS_PER_CHARACTER = 8
HALF = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Token:
    id: int
    text: str
    weight: float
    is_special: bool


@dataclass(frozen=True)
class SeenSample:
    """A sample of the data set, decoded. where: "file:row"; number: its index among the samples."""

    where: str
    number: int
    tokens: list[Token]

    @property
    def supervised_tokens(self) -> int:
        return sum(token.weight > 0 for token in self.tokens)

    def runs(self) -> Iterator[tuple[float, list[Token]]]:
        """Group neighbouring tokens of equal weight, in order."""
        for weight, tokens in groupby(self.tokens, key=lambda token: token.weight):
            yield weight, list(tokens)


def see(samples: FittedSamples, number: int, tokenizer: Any) -> SeenSample:
    """Return the sample of that number as text. Its first token, which is no target, has weight 0."""
    sample = samples[number]
    ids, weights = sample.input_ids.tolist(), [0.0, *sample.target_weights.tolist()]
    special = set(tokenizer.all_special_ids)
    special |= {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    texts = token_texts(ids, tokenizer)
    tokens = [Token(i, text, weight, i in special) for i, text, weight in zip(ids, texts, weights, strict=True)]
    return SeenSample(samples.where(number), number, tokens)


def token_texts(ids: list[int], tokenizer: Any) -> list[str]:
    """Return what each token adds to the text; a character made of several tokens stands at the first of them."""
    backend = tokenizer.backend_tokenizer
    alone = backend.decode_batch([[token_id] for token_id in ids], skip_special_tokens=False)
    if HALF not in "".join(alone) and "".join(alone) == backend.decode(ids, skip_special_tokens=False):
        return alone
    texts: list[str] = []
    while len(texts) < len(ids):
        text, length = _next_text(ids, len(texts), backend)
        texts += [text] + [""] * (length - 1)
    return texts


def _next_text(ids: list[int], start: int, backend: Any) -> tuple[str, int]:
    """Return (the text of the token at `start`, how many tokens it takes to make whole characters)."""

    def decode(begin: int, end: int) -> str:
        return backend.decode(ids[begin:end], skip_special_tokens=False)

    # With the token before it: some tokenizers write the space before a word only where it is not the first.
    begin = max(0, start - 1)
    before = decode(begin, start)
    for length in range(1, min(MOST_TOKENS_PER_CHARACTER, len(ids) - start) + 1):
        text = decode(begin, start + length)
        text = text.removeprefix(before) if text.startswith(before) else decode(start, start + length)
        if HALF not in text:
            return text, length
    return decode(start, start + 1), 1
