"""Declare what a key may hold: numbers in their bounds, names, paths, lists. schema.py builds sections of them.

The types describe themselves: an error message and the reference page quote the `description` of a key's type.
"""

import os
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field


def expand_home(path: str) -> str:
    """Return a path with its leading ~ replaced by the home directory; unchanged where this user has none.

    In a container, a user may have neither HOME nor an entry among the users.
    """
    return os.path.expanduser(path)  # noqa: PTH111 - pathlib raises where there is no home


def one_or_several(value: Any) -> Any:
    """Return a list as it is, and anything else but None as a list of one."""
    return value if isinstance(value, list | tuple | None) else (value,)


def none_is_empty(value: Any) -> Any:
    """Return no entries for None, and otherwise a list, as `one_or_several`."""
    return () if value is None else one_or_several(value)


def _digits_are_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


# `strict`: "12" is no number, 1 is no bool, 1.5 is no count. A float still takes an int.
Flag = Annotated[bool, Field(strict=True, description="true or false")]
Count = Annotated[int, Field(strict=True, ge=1, description="a whole number of at least 1")]
CountOrZero = Annotated[int, Field(strict=True, ge=0, description="a whole number of at least 0")]
CountOrOff = Annotated[int, Field(strict=True, ge=-1, description="a whole number of at least -1")]
PartOfRun = Annotated[float, Field(strict=True, gt=0, lt=1, description="a part of the run above 0 and below 1")]
Interval = CountOrOff | PartOfRun | Literal["epoch"]
Length = Annotated[int, Field(strict=True, ge=2, description="a whole number of at least 2")]
Above0 = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False, description="a number above 0")]
AtLeast0 = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False, description="a number of at least 0")]
Dropout = Annotated[float, Field(strict=True, ge=0, lt=1, description="a number of at least 0 and below 1")]
Share = Annotated[float, Field(strict=True, ge=0, le=1, description="a number from 0 to 1")]
ShareAbove0 = Annotated[float, Field(strict=True, gt=0, le=1, description="a number above 0 and up to 1")]
Part = Annotated[float, Field(strict=True, ge=0, lt=1, description="a part of the rows, from 0 to below 1,")]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1)]
Betas = Annotated[tuple[Decay, Decay], Field(description="two numbers, each at least 0 and below 1")]


def _in_order(steps: tuple[int, int]) -> tuple[int, int]:
    if steps[0] > steps[1]:
        raise ValueError("the first step comes after the last one")
    return steps


Steps = Annotated[
    tuple[Count, Count], AfterValidator(_in_order), Field(description="two step numbers, [first, last], in order")
]

Text = Annotated[str, Field(strict=True, min_length=1, description="text")]
Name = Annotated[Text, BeforeValidator(_digits_are_text), Field(description="text")]  # experiment_name=7 is a name
UserPath = Annotated[Text, AfterValidator(expand_home), Field(description="a path")]
ValMetric = Annotated[
    Text,
    Field(
        pattern=r"^val/(\w+|loss/.+)$",
        description="val/loss, val/perplexity, val/token_accuracy, val/loss/<file> or val/<trainer.generate_metric>",
    ),
]
HubModel = Annotated[
    Text, Field(pattern=r"^([\w-][\w.-]*/)?[\w-][\w.-]*$", description="a hub id org/name, or name for one of your own")
]
TaskMetric = Annotated[
    UserPath,
    Field(
        pattern=r"^(exact_match|contains|rouge|.+\.py:[A-Za-z_]\w*)$",
        description="exact_match, contains, rouge or file.py:function",
    ),
]
Template = Annotated[UserPath, Field(description="jinja text, a file or a name")]
Model = Annotated[UserPath, Field(description="a model directory or a hub id org/name")]
Files = Annotated[
    tuple[UserPath, ...], BeforeValidator(one_or_several), Field(min_length=1, description="a path or a list of paths")
]
Keys = Annotated[tuple[Text, ...], BeforeValidator(none_is_empty), Field(description="a list of names")]
Names = Annotated[
    tuple[Text, ...], BeforeValidator(one_or_several), Field(min_length=1, description="a name or a list of names")
]
Modules = Annotated[
    Text | tuple[Text, ...], Field(min_length=1, description="all-linear, a list of names or a regular expression")
]
LoraStart = Annotated[Flag | Text, Field(description="true or gaussian")]
Format = Literal["auto", "messages", "sharegpt", "prompt_response", "alpaca", "dolly", "openorca", "text"]
Variables = Annotated[dict[str, Any], Field(description="a section of keys")]

Tracker = Literal["console", "jsonl", "tensorboard", "wandb", "mlflow", "swanlab", "trackio"]
Trackers = Annotated[
    tuple[Tracker, ...],
    BeforeValidator(one_or_several),
    Field(min_length=1, description=f"one or a list of {', '.join(get_args(Tracker))}"),
]


def _is_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return text


Pattern = Annotated[Text, AfterValidator(_is_pattern), Field(description="a regular expression")]
Patterns = Annotated[
    tuple[Pattern, ...], BeforeValidator(none_is_empty), Field(description="a list of regular expressions")
]
RateShare = Annotated[Text, Field(pattern=r"^x(\d+\.?\d*|\.\d+)(e-?\d+)?$", description="x0.1 for a share of optim.lr")]
