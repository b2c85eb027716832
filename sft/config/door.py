"""Check composed values: they become a frozen SftConfig, or an error that lists everything wrong with them."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from sft.config.checks.data import misshaped
from sft.config.checks.run import check
from sft.config.compose import chooses_verls_group, compose, key_of
from sft.config.expectations import expectations
from sft.config.foreign import FOREIGN
from sft.config.mappings import as_overrides, flatten
from sft.config.names import Names, like, other_defaults
from sft.config.problems import ConfigError, Report, shown
from sft.config.run_name import fill_names
from sft.config.schema import SftConfig
from sft.config.secrets import holds_secret, not_on_a_command_line, without_secrets
from sft.config.values import expand_home

log = logging.getLogger("sft")


def load_config(
    overrides: Sequence[str] | Mapping[str, Any] = (), *, warn: Callable[[str], None] = log.warning, **values: Any
) -> SftConfig:
    """Return the configuration that these values make, checked and frozen.

    overrides: as on the command line (`["+experiment=quickstart", "optim.lr=1e-3"]`), or a mapping of dotted or nested
        keys (`{"experiment": "quickstart", "optim": {"lr": 1e-3}}`)
    values: more of them, by keyword (`optim={"lr": 1e-3}`)
    warn: called once for each alias and each key without effect

    Raises ConfigError with every problem at once.
    """
    texts = as_overrides(overrides) if isinstance(overrides, Mapping) else list(overrides)
    texts += as_overrides(values)
    unusable: dict[str, str] = {}
    return checked(compose(texts, unusable), texts, warn, unusable=unusable)


def checked(
    values: Mapping[str, Any],
    overrides: Iterable[str],
    warn: Callable[[str], None],
    world_size: int | None = None,
    unusable: Mapping[str, str] | None = None,
    needs_weights: bool = True,
) -> SftConfig:
    """Check composed values and return an SftConfig. Raises ConfigError.

    overrides: what came from the command line
    needs_weights: whether the model directory must have them; a look at the rows does not
    world_size: ranks that it must be able to run on; None: what torchrun says, 0: the fewest that it can run on
    unusable: overrides that `values` lack, each with the problem to report
    """
    report, unusable = Report(warn), unusable or {}
    flat, given = flatten(values), {key_of(override) for override in overrides}
    names = Names(flat, given, _defaults, report)
    names.settle()
    sp = flat.get("ulysses_sequence_parallel_size")
    if world_size is None:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
    elif world_size == 0:
        copies = flat.get("model.fsdp_config.dp_replicate")
        world_size = math.prod(n for n in (sp, copies) if type(n) is int and n >= 1)
    names.divide(world_size, world_size // sp if type(sp) is int and 1 <= sp <= world_size else world_size)
    if any(map(chooses_verls_group, overrides)) and (told := other_defaults(flat, given | names.settled)):
        warn(told)
    fill_names(flat)
    for key in [key for key in flat if key not in expectations()]:
        report.problem(_unknown(key, flat.pop(key)))
        # One complaint is enough where a section was given a value: its keys are not "missing" as well.
        flat = {name: value for name, value in _defaults().items() if name.startswith(f"{key}.")} | flat
    config, wrong = _typed(flat, report)
    checks = Report(warn)
    check(config, world_size, checks, needs_weights)
    unread = {key_of(override) for override in unusable} & expectations().keys()
    problems = [
        *unusable.values(),
        *_about_others(report.problems, unread),
        # A problem about a value that is wrong by itself would quote the stand-in the user never wrote.
        *_about_others(checks.problems, wrong | unread),
    ]
    if problems:
        raise ConfigError(problems)
    return config


def _about_others(problems: Iterable[str], keys: set[str]) -> list[str]:
    """Return the problems that name none of `keys`."""
    return [problem for problem in problems if not any(re.search(rf"\b{re.escape(key)}\b", problem) for key in keys)]


def config_to_yaml(config: SftConfig) -> str:
    """Return the resolved configuration as YAML, for config.yaml in the run directory. Masks secrets."""
    return yaml.safe_dump(without_secrets(asdict(config)), sort_keys=False, allow_unicode=True)


def changed_keys(config: SftConfig) -> set[str]:
    """Return the dotted keys whose value differs from the default in conf/."""
    defaults = _defaults()
    values = flatten(asdict(config))
    return {key for key, value in values.items() if _listed(value) != _listed(defaults.get(key))}


def _listed(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("~"):
        return expand_home(value)
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def read_config(file: Path) -> SftConfig:
    """Read the configuration that a run left in its config.yaml; nothing of it is checked against this machine.

    Keys that came later have their default. Raises ConfigError for a file that is no such configuration.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError([f"{file} cannot be read ({error}); give the directory of a run."]) from error
    report = Report(log.warning)
    flat = _defaults() | (flatten(values) if isinstance(values, Mapping) else {"": values})
    fill_names(flat)
    for key in [key for key in flat if key not in expectations()]:
        report.problem(f"{file}: {_unknown(key, flat.pop(key))}")
    config, _ = _typed(flat, report)
    if report.problems:
        raise ConfigError(report.problems)
    return config


@cache
def _defaults() -> dict[str, Any]:
    return flatten(compose([]))


def _typed(flat: Mapping[str, Any], report: Report) -> tuple[SftConfig, set[str]]:
    """Return the configuration, and the keys that had to be replaced by their default to make one, each reported."""
    schema = TypeAdapter(SftConfig)
    try:
        return schema.validate_python(_nest(flat)), set()
    except ValidationError as error:
        found = error.errors()
        wrong = {_key_at(problem["loc"]) for problem in found}
    in_sources = [misshaped(problem) for problem in found if _key_at(problem["loc"]) == "data.mixture"]
    for key in (key for key in expectations() if key in wrong):
        sentences = [told for told in in_sources if told] if key == "data.mixture" else []
        for sentence in sentences or [_mistyped(key, flat)]:
            report.problem(sentence)
    stand_ins = _defaults() | {"model.partial_pretrain": "org/name"}  # required: its default is no model either
    fill_names(stand_ins)
    return schema.validate_python(_nest({**flat, **{key: stand_ins[key] for key in wrong}})), wrong


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key in expectations():  # every section exists, so that each of its missing keys is reported
        *sections, _ = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        if key in flat:
            inner[key.rpartition(".")[2]] = flat[key]
    return nested


def _key_at(location: tuple[int | str, ...]) -> str:
    """Return the key around a place inside its value: ("optim", "betas", 1) -> "optim.betas"."""
    parts = [str(part) for part in location]
    return next(key for n in range(len(parts), 0, -1) if (key := ".".join(parts[:n])) in expectations())


def _mistyped(key: str, flat: Mapping[str, Any]) -> str:
    default = _defaults()[key]
    expected = expectations()[key]
    if key not in flat:
        return f"{key} is missing; set it to {expected}, for example {key}={shown(default)}."
    if default is None and flat[key] is None:
        return f"{key} is not set; set it to {expected}, for example {key}=Qwen/Qwen2.5-0.5B-Instruct."
    return f"{key}={shown(flat[key])} must be {expected}; the default is {shown(default)}."


def _unknown(key: str, value: Any) -> str:
    known = expectations()
    sections = sorted({name.rpartition(".")[0] for name in known if name.startswith(f"{key}.")})
    if sections:
        inside = ", ".join(name.removeprefix(f"{key}.") for name in known if name.startswith(f"{key}."))
        return f"{key}={shown(value)} is a section, not a value; set a key of it: {inside}."
    if holds_secret(key, value):
        return not_on_a_command_line(key)
    leaf = key.rpartition(".")[2]
    if near := like(key):
        return f"{key} is not a key; did you mean {' or '.join(near)}?"
    if leaf in FOREIGN:
        return f"{key} is not a key; of {leaf}: {FOREIGN[leaf].reason}."
    return f"{key} is not a key; --help lists all of them."
