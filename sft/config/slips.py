"""Recognise what people type first and Hydra does not read: dashes, blanks around =, colons, open brackets."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from sft.config.expectations import expectations
from sft.config.foreign import ALIASES, FOREIGN
from sft.config.mappings import is_file_of_values
from sft.config.names import like
from sft.config.problems import ConfigError, shown
from sft.config.secrets import holds_secret, not_on_a_command_line

DASHED = re.compile(r"-+(?P<name>[A-Za-z][\w.-]*)(?:[=:](?P<value>.*))?", re.DOTALL)
WORD = re.compile(r"\+*[A-Za-z][\w.]*")
QUOTED = re.compile(r"\\.|'[^']*'|\"(?:\\.|[^\"\\])*\"")
TYPOGRAPHIC = re.compile("[\u2018-\u201e\u2013\u2014\uff1d]")  # what a word processor makes of ' " -- and =


def refuse_slips(arguments: Sequence[str], flags: Collection[str]) -> None:
    """Raise ConfigError for words of a command line that are meant as key=value and are written otherwise.

    flags: the options of Hydra, as `--multirun`; a long one may be shortened, as argparse allows
    """
    problems: list[str] = []
    for before, text, after in zip(["", *arguments], arguments, [*arguments[1:], ""], strict=False):
        dashed = DASHED.fullmatch(text)
        if dashed and not _is_flag(text.partition("=")[0], flags):
            value = dashed["value"] or (after if _is_value(after) or is_file_of_values(after) else "value")
            problems.append(_dashes(text, dashed["name"].replace("-", "_"), value))
        elif text.startswith("=") and WORD.fullmatch(before):
            problems.append(_blanks(before, text[1:] or after))
        elif text[-1:] in ("=", ":") and WORD.fullmatch(text[:-1]) and _is_value(after):
            problems.append(_blanks(text[:-1], after))
    if problems:
        raise ConfigError(problems)


def why_unreadable(override: str, grammar: str) -> str:
    """Say what is wrong with a word that is no override in Hydra's grammar, which says `grammar` about it."""
    key, equals, value = override.partition("=")
    if TYPOGRAPHIC.search(override):
        return f"{override!r} holds typographic quotes, dashes or signs; type plain ' \" - and =."
    if not equals and (colon := re.fullmatch(r"(\+*[A-Za-z][\w.]*):(.+)", override, re.DOTALL)):
        return f"{override!r} has a colon; write {colon[1]}={colon[2]}."
    if not equals and override in expectations():
        return f"{override!r} has no value; write {override}=<{expectations()[override]}>."
    if not equals:
        return f"{override!r} is not an override; write key=value, for example optim.lr=2e-5."
    if key != key.strip():
        return _blanks(key.strip(), value.strip())
    bare = QUOTED.sub("", value)
    if any(bare.count(opening) != bare.count(closing) for opening, closing in ("[]", "{}", "()")):
        return (
            f"{override!r}: a bracket is not closed, or the shell took a part; write the whole word in quotes, for "
            'example "data.prompt_dict_keys=[question]".'
        )
    if "'" in bare or '"' in bare:
        return f"{override!r}: a quote is not closed; write the whole word in quotes of the other kind."
    way_out = "put the value in quotes inside the quotes of the shell: key='\"...\"'"
    return f"{override!r} cannot be read ({grammar}); {way_out}."


def key_meant_by(name: str) -> str:
    """Return the key that `name` is, or was probably meant for; itself if nothing is like it."""
    if name in expectations() or name in ALIASES or name in FOREIGN:
        return name
    return (like(name) or [name])[0]


def _is_flag(text: str, flags: Collection[str]) -> bool:
    return text in flags or len([flag for flag in flags if flag.startswith(text)]) == 1


def _dashes(text: str, name: str, value: str) -> str:
    if holds_secret(name, value):
        return not_on_a_command_line(name)
    way_out = value if is_file_of_values(value) else f"{key_meant_by(name)}={value}"
    return f"{text}: keys have no dashes; write {way_out}."


def _blanks(key: str, value: str) -> str:
    if holds_secret(key, value):
        return not_on_a_command_line(key)
    return f"{shown(key)} and {shown(value)} stand apart; write {key_meant_by(key)}={value}, without blanks."


def _is_value(text: str) -> bool:
    return text != "" and "=" not in text and not text.startswith("-") and not is_file_of_values(text)
