"""The keys of this command alone: `+inspect.samples=5`."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sft.config.report import ConfigError


@dataclass(frozen=True)
class Options:
    samples: Annotated[int, Field(ge=0, description="how many samples are shown")] = 3
    seed: Annotated[int | None, Field(ge=0, description="a number: samples drawn at random; null: the first")] = None
    row: Annotated[str | None, Field(description="show the samples of this row alone, for example train.jsonl:12")] = (
        None
    )
    ids: Annotated[bool, Field(description="true: the id behind every token")] = False
    ranks: Annotated[int | None, Field(ge=1, description="ranks that will train; null: the fewest possible")] = None
    out: Annotated[str | None, Field(description="file for the samples as JSONL: ids, tokens, weights")] = None
    html: Annotated[str | None, Field(description="file for the samples and the numbers as a page")] = None
    written: Annotated[int, Field(ge=-1, description="how many samples go into these files; -1: all")] = 200


KEYS = list(Options.__dataclass_fields__)


def take_options(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """(our own keys, the other arguments). Raises ConfigError with everything that is wrong with ours."""
    ours = [text for text in arguments if _is_ours(text)]
    given, problems = {}, []
    for text in ours:
        key, _, value = text.lstrip("+").partition("=")
        name = key.removeprefix("inspect.")
        if name in KEYS:
            given[name] = None if value == "null" else value.strip("'\"")
        else:
            close = [f"inspect.{near}" for near in get_close_matches(name, KEYS, n=1, cutoff=0.6)]
            guess = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(KEYS)}."
            problems.append(f"{key} is not a key; {guess}")
    try:
        options = TypeAdapter(Options).validate_python(given)
    except ValidationError as error:
        for problem in error.errors():
            name = problem["loc"][0]
            problems.append(f"inspect.{name}={given[str(name)]}: {problem['msg'][0].lower()}{problem['msg'][1:]}.")
        options = Options()
    for name in ("out", "html"):
        path = getattr(options, name)
        if path is not None and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
            problems.append(f"inspect.{name}={path} must be a file in a directory that exists.")
    if problems:
        raise ConfigError(problems)
    return options, [text for text in arguments if not _is_ours(text)]


def help_text() -> str:
    """Our keys, one per line, with their defaults."""
    return "\n".join(
        f"  +inspect.{name}={'null' if field.default is None else str(field.default).lower():<6} "
        f"{TypeAdapter(Options).json_schema()['properties'][name]['description']}"
        for name, field in Options.__dataclass_fields__.items()
    )


def _is_ours(text: str) -> bool:
    key = text.lstrip("+").partition("=")[0]
    return key == "inspect" or key.startswith("inspect.")
