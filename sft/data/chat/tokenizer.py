"""Open the Rust tokenizer behind a transformers tokenizer, and give fingerprints of tokenizer and template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sft.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


def template_fingerprint(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> str:
    """Return a sha256 of chat template, options and special tokens: where it is equal, messages become equal text."""
    return _sha256([tokenizer.chat_template, dict(options), tokenizer.special_tokens_map])


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a sha256 of all that defines the tokenizer: where it is equal, in any process, text becomes equal ids."""
    return _sha256([json.loads(rust_tokenizer(tokenizer).to_str()), tokenizer.special_tokens_map])


def rust_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return the Rust tokenizer inside `tokenizer`, which knows the characters that each token stands for.

    Switches off its truncation and padding, and lets special tokens in a text become their ids. Raises InputError
    where there is no such tokenizer inside.
    """
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


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
