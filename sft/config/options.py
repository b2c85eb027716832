"""Take the keys of one command alone out of its arguments: `python -m sft.inspect ... +inspect.samples=5`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from sft.config.problems import ConfigError
from sft.files import complaint_about_output

Options = TypeVar("Options")


def take_options(
    arguments: Sequence[str], kind: type[Options], section: str, files: Sequence[str] = ()
) -> tuple[Options, list[str]]:
    """Return (the keys `section.*` as a `kind`, the other arguments). Raises ConfigError with all problems of ours.

    kind: a pydantic dataclass whose fields all have defaults. files: fields that name a file to be written.
    """
    keys, ours = [field.name for field in fields(kind)], [text for text in arguments if _is_of(section, text)]  # pyright: ignore[reportArgumentType]
    given: dict[str, Any] = {}
    problems: list[str] = []
    for text in ours:
        key, _, value = text.lstrip("+").partition("=")
        name = key.removeprefix(f"{section}.")
        if name in keys:
            given[name] = None if value == "null" else value.strip("'\"")
        else:
            close = [f"{section}.{near}" for near in get_close_matches(name, keys, n=1, cutoff=0.6)]
            guess = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(keys)}."
            problems.append(f"{key} is not a key; {guess}")
    try:
        options = TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        for problem in error.errors():
            name = problem["loc"][0]
            problems.append(f"{section}.{name}={given[str(name)]}: {problem['msg'][0].lower()}{problem['msg'][1:]}.")
        options = kind()
    for name in files:
        path = getattr(options, name)
        if path is not None and (complaint := complaint_about_output(Path(path))):
            problems.append(f"{section}.{name}={path} {complaint}; name another file.")
    if problems:
        raise ConfigError(problems)
    return options, [text for text in arguments if not _is_of(section, text)]


def help_text(kind: type[Any], section: str) -> str:
    """Return the help text of these keys: one per line, with defaults."""
    about = TypeAdapter(kind).json_schema()["properties"]
    return "\n".join(
        f"  +{section}.{field.name}={'null' if field.default is None else str(field.default).lower():<6} "
        f"{about[field.name]['description']}"
        for field in fields(kind)
    )


def _is_of(section: str, text: str) -> bool:
    key = text.lstrip("+").partition("=")[0]
    return key == section or key.startswith(f"{section}.")
