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
from sft.files import is_of_the_machine

WORDS = "one two three four"
PROBES = (
    WORDS,
    " It's 1234 + x_y\n\n\tthree  spaces;\r\n",
    "É é ﬁ 漢字かな 🙂 don't HELLO-WORLD",
)
"""Texts on which two tokenizers differ if they cut or change text in different ways."""

FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt")
LFS = b"version https://git-lfs"

FILE_CLASS = "PreTrainedTokenizerFast"
"""The name under which every version of transformers takes tokenizer.json as it is."""


def load_tokenizer(directory: Path, *, trust_remote_code: bool) -> Any:
    """Open the tokenizer of a model directory, as tokenizer.json says where there is one.

    Raises InputError where there is none that can be read, or where text loses its spaces on the way to ids and back.
    """
    _refuse_tekken_alone(directory)
    tokenizer = _open(AutoTokenizer, directory, trust_remote_code=trust_remote_code)
    tokenizer.chat_template = tokenizer.chat_template or template_of_processor(directory)
    follows = _follows_file(tokenizer, directory / "tokenizer.json") or _chosen_by_model_type(directory)
    if follows and keeps_words(tokenizer):
        return tokenizer
    as_the_file_says = _open(PreTrainedTokenizerFast, directory)
    as_the_file_says.chat_template = tokenizer.chat_template
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


def template_of_processor(directory: Path) -> str | None:
    """Return the chat template that a vision model keeps for its processor, if its tokenizer has none of its own."""
    if (directory / "chat_template.jinja").is_file() or (directory / "additional_chat_templates").is_dir():
        return None
    of_tokenizer, *of_processor = (
        _said_in(directory / name, "chat_template")
        for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json")
    )
    return None if of_tokenizer else next(filter(None, of_processor), None)


def asks_for_bos(directory: Path) -> bool:
    """Return True if tokenizer_config.json asks for bos before every text.

    Since its version 5, transformers does so only where tokenizer.json says it, too, which DeepSeek's does not.
    """
    return _said_in(directory / "tokenizer_config.json", "add_bos_token") is True


def _said_in(file: Path, key: str) -> Any:
    try:
        return json.loads(file.read_text()).get(key) if file.is_file() else None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} is no JSON object ({error}); download it again.") from error


def _open(kind: Any, directory: Path, **options: Any) -> Any:
    try:
        tokenizer = kind.from_pretrained(directory, **options)
    except Exception as error:  # the tokenizers library raises plain Exceptions; all it says is about these files
        raise InputError(f"model.partial_pretrain={directory}{_why_not_opened(directory, error)}") from error
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        # What somebody's last call left in tokenizer.json would cut and pad the probes.
        backend.no_truncation()
        backend.no_padding()
    return tokenizer


def _why_not_opened(directory: Path, error: Exception) -> str:
    """Return what is wrong with the files of a tokenizer that transformers cannot open, and what to do."""
    if is_of_the_machine(error):
        return f": its tokenizer cannot be read ({_last_line(error)}); check the disk, and the permissions."
    there = {path.name for path in directory.iterdir() if path.is_file()}
    pointers = [name for name in sorted(there & {*FILES}) if (directory / name).read_bytes()[:200].startswith(LFS)]
    if pointers:
        return f": {', '.join(pointers)} is a git-lfs pointer, not the file; run `git lfs pull` where you cloned it."
    if "tokenizer.json" not in there and "tokenizer.model" in there:
        return (
            " has only tokenizer.model, which transformers cannot read here; pip install sentencepiece protobuf, or "
            f"put a tokenizer.json beside it ({_last_line(error)})."
        )
    if "tokenizer.json" not in there:
        return (
            f": no usable tokenizer there, and no tokenizer.json (found {', '.join(sorted(there)[:8]) or 'no files'}); "
            "copy the tokenizer's files from the model that this one was made of."
        )
    return f": no usable tokenizer there ({_last_line(error)}); download its files again."


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
