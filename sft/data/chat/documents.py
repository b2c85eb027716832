"""Plain text -> Samples: pretraining data, every token trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sft.data.chat.framing import frame_of, special_tokens
from sft.data.chat.tokenizer import rust_tokenizer
from sft.data.chat.weights import weighted
from sft.data.types import Document
from sft.errors import InputError
from sft.types import Sample


def encode_documents(documents: Sequence[Document], tokenizer: Any, max_length: int) -> list[list[Sample]]:
    """Turn documents into samples: the text as the tokenizer frames it (its bos, if it adds one), then eos.

    A text that was rendered before gets nothing twice: one that begins with bos gets no other, and one that ends with a
    special token, be there white space behind it, no eos.
    A document longer than max_length is several samples. Each begins with the last token of the one before, so
    that every token but the document's first is predicted, exactly once. A blank document has no samples.
    """
    backend = rust_tokenizer(tokenizer)
    eos = tokenizer.eos_token_id
    if eos is None:
        raise InputError("plain text rows end with the tokenizer's eos token, and this tokenizer has none.")
    frame, bos, ends = frame_of(tokenizer), tokenizer.bos_token, special_tokens(tokenizer)
    after = frame.after if eos in frame.after else [*frame.after, eos]
    encodings = backend.encode_batch([document.text for document in documents], add_special_tokens=False)
    framed = [
        [
            *([] if bos and document.text.lstrip().startswith(bos) else frame.before),
            *encoding.ids,
            *([] if document.text.rstrip().endswith(ends) else after),
        ]
        for document, encoding in zip(documents, encodings, strict=True)
    ]
    return [
        weighted(_chunks(ids, max_length), document.weight) if document.text.strip() else []
        for document, ids in zip(documents, framed, strict=True)
    ]


def _chunks(ids: list[int], max_length: int) -> list[Sample]:
    # A chunk of one token would predict nothing: it is the last token of a chunk that is full.
    return [_trained(ids[start : start + max_length]) for start in range(0, len(ids) - 1, max_length - 1)]


def _trained(ids: list[int]) -> Sample:
    loss_weights = np.ones(len(ids), np.float32)
    loss_weights[0] = 0.0  # nothing stands before it
    return Sample(np.array(ids, np.int32), loss_weights)
