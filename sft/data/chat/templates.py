"""The chat templates that come with the trainer, by name, and the tokens they need."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sft.errors import InputError

DIRECTORY = Path(__file__).with_name("shipped")
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.jinja"))
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def find_template(given: str, own: Mapping[str, str] | None = None) -> str:
    """Return the text that data.chat_template stands for: a name, a file, or the text itself. Raises InputError.

    own: the tokenizer's own templates by name. A shipped one of the same name counts first.
    """
    own = own or {}
    if given in NAMES:
        return (DIRECTORY / f"{given}.jinja").read_text()
    if given in own:
        return own[given]
    if "{" in given:
        return given
    if Path(given).is_file():
        return Path(given).read_text()
    names = [*NAMES, *own]
    close = get_close_matches(given, names, n=1)
    guess = f"did you mean {close[0]}? Names: " if close else "the names are "
    raise InputError(
        f"data.chat_template={given!r} is neither a Jinja template, nor a file, nor a name; {guess}{', '.join(names)}."
    )


def named_templates(tokenizer: Any) -> dict[str, str]:
    """Return the tokenizer's templates by name; empty if it has one template without a name, or none."""
    return dict(tokenizer.chat_template) if isinstance(tokenizer.chat_template, Mapping) else {}


def check_default(tokenizer: Any) -> None:
    """Raise InputError if the tokenizer has templates by name, and none of them is the one for every use."""
    named = named_templates(tokenizer)
    if named and "default" not in named:
        raise InputError(
            f"the tokenizer has chat templates for {', '.join(named)}, and none called default; choose one: "
            f"data.chat_template={next(iter(named))}, or give a Jinja file."
        )


def add_missing_tokens(tokenizer: Any, template: str) -> dict[str, int]:
    """Give the tokenizer the special tokens of our ChatML where it lacks them; those that were added, with their ids.

    One that the vocabulary holds as an ordinary word keeps its id and becomes special.
    """
    if not template.endswith(find_template("chatml")):  # bos may stand before it
        return {}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    missing = [token for token in CHATML_TOKENS if token not in special]
    tokenizer.add_tokens(missing, special_tokens=True)
    return {token: tokenizer.convert_tokens_to_ids(token) for token in missing}
