"""Open the tokenizer of a model directory so that it cuts text as its tokenizer.json says.

transformers rebuilds some tokenizers from the class that tokenizer_config.json names. Where the class does not fit the
file (a byte-level tokenizer labelled Llama, before transformers 5.22), all spaces are lost, and nothing says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sft.errors import InputError

WORDS = "one two three four"
PROBES = (
    WORDS,
    " It's 1234 + x_y\n\n\tthree  spaces;\r\n",
    "É é ﬁ 漢字かな 🙂 don't HELLO-WORLD",
)
"""Texts on which two tokenizers differ if they cut or change text in different ways."""

FILE_CLASS = "PreTrainedTokenizerFast"
"""The name under which every version of transformers takes tokenizer.json as it is."""


def load_tokenizer(directory: Path, *, trust_remote_code: bool) -> Any:
    """Open the tokenizer of a model directory, as tokenizer.json says where there is one.

    Raises InputError where there is none that can be read, or where text loses its spaces on the way to ids and back.
    """
    _refuse_tekken_alone(directory)
    tokenizer = _open(AutoTokenizer, directory, trust_remote_code=trust_remote_code)
    follows = _follows_file(tokenizer, directory / "tokenizer.json") or _chosen_by_model_type(directory)
    if follows and keeps_words(tokenizer):
        return tokenizer
    as_the_file_says = _open(PreTrainedTokenizerFast, directory)
    if keeps_words(as_the_file_says):
        return as_the_file_says
    raise InputError(
        f"model.partial_pretrain={directory}: the tokenizer loses the spaces between words: {WORDS!r} becomes "
        f"{_there_and_back(as_the_file_says, WORDS)!r}. The decoder in tokenizer.json does not fit its pre-tokenizer; "
        "download the tokenizer again, or take that of the model this one was made of."
    )


def keeps_words(tokenizer: Any) -> bool:
    """Return True if words come back from ids as words; case and punctuation may change. True without a tokenizer.json.

    A tokenizer in Python has no offsets; rust_tokenizer refuses it in a sentence of its own.
    """
    return getattr(tokenizer, "backend_tokenizer", None) is None or (
        _there_and_back(tokenizer, WORDS).lower().split() == WORDS.split()
    )


def takes_file_as_it_is(tokenizer: Any) -> bool:
    """Return True if the tokenizer is of the class that reads tokenizer.json and changes nothing of it."""
    return type(tokenizer) is PreTrainedTokenizerFast


def _open(kind: Any, directory: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(directory, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if (directory / "tokenizer.model").is_file() and not (directory / "tokenizer.json").is_file():
            raise InputError(
                f"model.partial_pretrain={directory} has only tokenizer.model, which transformers cannot read here; "
                f"pip install sentencepiece protobuf, or put a tokenizer.json beside it ({_last_line(error)})."
            ) from error
        raise InputError(
            f"model.partial_pretrain={directory}: no usable tokenizer there ({_last_line(error)})."
        ) from error


def _refuse_tekken_alone(directory: Path) -> None:
    """Refuse a tekken.json alone: it names neither a chat template nor the special tokens, and training needs both."""
    if not (directory / "tekken.json").is_file() or (directory / "tokenizer.json").is_file():
        return
    special = "bos_token='<s>', eos_token='</s>', pad_token='<pad>'"
    raise InputError(
        f"model.partial_pretrain={directory} has only tekken.json, which names neither special tokens nor a chat "
        "template. Take tokenizer.json, tokenizer_config.json and chat_template.jinja from the model's repository, or "
        'make the first two: pip install mistral-common, then python -c "from transformers import '
        f"PreTrainedTokenizerFast as T; T.from_pretrained('{directory}', {special}).save_pretrained('{directory}')\"."
    )


def _follows_file(tokenizer: Any, file: Path) -> bool:
    """Return True if the tokenizer cuts the probes, and joins their tokens, as the file says.

    A class that takes the file as it is needs no proof. Of all others normaliser, pre-tokenizer and decoder are built
    from the file without its vocabulary, which would take a second.
    """
    if takes_file_as_it_is(tokenizer) or not file.is_file():
        return True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return True
    from tokenizers import Tokenizer

    said = json.loads(file.read_text())
    parts = {"normalizer", "pre_tokenizer", "decoder"}
    bare = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    filed = Tokenizer.from_str(json.dumps(bare | {name: said.get(name) for name in parts}))
    return all(_pieces(backend, text) == _pieces(filed, text) for text in PROBES) and all(
        _joined(backend, tokens) == _joined(filed, tokens)
        for tokens in (backend.encode(text, add_special_tokens=False).tokens for text in PROBES)
    )


def _chosen_by_model_type(directory: Path) -> bool:
    """Return True where transformers takes another class although the files name none, or the one that follows them.

    It does so for some model types (Qwen3.5). Whoever opens the model gets that class, and no file could change it.
    """
    file = directory / "tokenizer_config.json"
    named = json.loads(file.read_text()).get("tokenizer_class") if file.is_file() else None
    return named in (None, FILE_CLASS)


def _pieces(backend: Any, text: str) -> list[str]:
    """Return the pieces of a text between which no token reaches."""
    normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(normal)] if backend.pre_tokenizer else [normal]


def _joined(backend: Any, tokens: list[str]) -> str:
    return backend.decoder.decode(tokens) if backend.decoder else " ".join(tokens)


def _there_and_back(tokenizer: Any, text: str) -> str:
    backend = tokenizer.backend_tokenizer
    return backend.decode(backend.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
