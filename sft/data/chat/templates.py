"""The chat templates that come with the trainer, by name, and the tokens they need."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sft.errors import InputError

DIRECTORY = Path(__file__).with_name("shipped")
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.jinja"))
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def find_template(given: str) -> str:
    """The text that data.chat_template stands for: a shipped name, a file, or the text itself. Raises InputError."""
    if given in NAMES:
        return (DIRECTORY / f"{given}.jinja").read_text()
    if "{" in given:
        return given
    if Path(given).is_file():
        return Path(given).read_text()
    close = get_close_matches(given, NAMES, n=1)
    guess = f"did you mean {close[0]}? Names: " if close else "the names are "
    raise InputError(
        f"data.chat_template={given!r} is neither a Jinja template, nor a file, nor a name; {guess}{', '.join(NAMES)}."
    )


def add_missing_tokens(tokenizer: Any, template: str) -> dict[str, int]:
    """Give the tokenizer the special tokens of our ChatML where it lacks them; those that were added, with their ids.

    One that the vocabulary holds as an ordinary word keeps its id and becomes special.
    """
    if template != find_template("chatml"):
        return {}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    missing = [token for token in CHATML_TOKENS if token not in special]
    tokenizer.add_tokens(missing, special_tokens=True)
    return {token: tokenizer.convert_tokens_to_ids(token) for token in missing}
