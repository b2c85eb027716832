"""Say in words what every key must hold, read off the types of the schema."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from sft.config.schema import SftConfig, SourceConfig


@cache
def expectations() -> Mapping[str, str]:
    """Return what every key of the schema must hold, in order: {"optim.lr": "a number above 0", ...}."""
    return dict(_expectations(SftConfig, ""))


def source_expectations() -> dict[str, str]:
    """Return what every key of an entry of data.mixture must hold."""
    return dict(_expectations(SourceConfig, ""))


def _expectations(section: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for field in fields(section):
        if is_dataclass(field.type):
            yield from _expectations(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, _describe(field.type)


def _describe(annotation: Any) -> str:
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join("null" if part is type(None) else _describe(part) for part in get_args(annotation))
    if get_origin(annotation) is Literal:
        *head, last = get_args(annotation)
        return f"{', '.join(head)} or {last}" if head else last
    # The last word counts: Annotated flattens, so a type built on another carries both descriptions.
    return [field.description for field in annotation.__metadata__ if getattr(field, "description", None)][-1]
