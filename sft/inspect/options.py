"""Take the keys of this command alone: `+inspect.samples=5`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from sft.config import options


@dataclass(frozen=True)
class Options:
    samples: Annotated[int, Field(ge=0, description="how many samples are shown")] = 3
    seed: Annotated[int | None, Field(ge=0, description="a number: samples drawn at random; null: the first")] = None
    sample_rows: Annotated[
        int | None, Field(ge=1, description="so many rows alone, drawn from all files, to look at many in short time")
    ] = None
    row: Annotated[str | None, Field(description="show the samples of this row alone, for example train.jsonl:12")] = (
        None
    )
    ids: Annotated[bool, Field(description="true: the id behind every token")] = False
    ranks: Annotated[int | None, Field(ge=1, description="ranks that will train; null: the fewest possible")] = None
    fit: Annotated[
        bool, Field(description="true: what full, LoRA and QLoRA need on 1 to 64 ranks, and commands that fit")
    ] = False
    out: Annotated[str | None, Field(description="file for the samples as JSONL: ids, tokens, weights")] = None
    html: Annotated[str | None, Field(description="file for the samples and the numbers as a page")] = None
    written: Annotated[int, Field(ge=-1, description="how many samples go into these files; -1: all")] = 200


def take_options(arguments: Sequence[str]) -> tuple[Options, list[str]]:
    """Return (the keys `+inspect.*`, the other arguments). Raises ConfigError with all that is wrong with the first."""
    return options.take_options(arguments, Options, "inspect", files=("out", "html"))


def help_text() -> str:
    """Return the help text of the keys `+inspect.*`: one per line, with defaults."""
    return options.help_text(Options, "inspect")
