"""Describe what a key of another trainer means here: the words of the tables `verl` and `trainers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Reading(NamedTuple):
    """Say which of our keys are set by a key of another trainer with its value."""

    sets: Mapping[str, Any]  # our keys; empty: the value asks for nothing
    fills: Mapping[str, Any] = {}  # further keys of ours, where the user gave them no value


class Foreign(NamedTuple):
    """A foreign key: how its value is read, and the sentence that explains it."""

    reads: Callable[[Any], Reading | None]  # None: the value asks for something that is not offered
    reason: str = ""


NOTHING = Reading({})


def is_count(value: Any) -> bool:
    """Return True for a whole number of at least 1."""
    return type(value) is int and value >= 1


def no_effect(reason: str, names: str) -> dict[str, Foreign]:
    """Describe keys (separated by blanks) that may hold anything: none of it matters here."""
    return {name: Foreign(lambda value: NOTHING, reason) for name in names.split()}


def not_offered(reason: str, names: str) -> dict[str, Foreign]:
    """Describe keys of another trainer (separated by blanks) for what we do not have: they may only be switched off."""
    return only(is_off, reason, names)


def only(accepts: Callable[[Any], bool], reason: str, names: str) -> dict[str, Foreign]:
    """Describe keys of another trainer that have no effect here, and may hold only what `accepts` returns True for."""
    return {name: Foreign(lambda value: NOTHING if accepts(value) else None, reason) for name in names.split()}


def choice(readings: Mapping[Any, Mapping[str, Any]], reason: str = "") -> Foreign:
    """Describe a key with few values, each of which is read as some keys of ours. Text is compared in lower case."""

    def reads(value: Any) -> Reading | None:
        name = value.lower() if isinstance(value, str) else value
        known = isinstance(name, str | int | float | None) and name in readings
        return Reading(readings[name]) if known else NOTHING if value is None else None

    return Foreign(reads, reason)


def as_key(key: str, convert: Callable[[Any], Any] = lambda value: value, reason: str = "") -> Foreign:
    """Describe a key that is one of ours, with another notation for its value. `convert` returns None for no value."""

    def reads(value: Any) -> Reading | None:
        if value is None:
            return NOTHING
        converted = convert(value)
        return None if converted is None else Reading({key: converted})

    return Foreign(reads, reason or f"{key} says it")


def is_off(value: Any) -> bool:
    """Return True for the values by which trainers say that something is not wanted."""
    return value in (None, False, 0, -1, [], {}) or (isinstance(value, str) and value.lower() in OFF)


OFF = {"", "no", "none", "null", "false", "off", "disabled"}
