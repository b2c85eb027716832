"""Values that come as mappings - a YAML file of one's own, a run's config.yaml, Python dicts - as Hydra's overrides."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from sft.config.expectations import expectations
from sft.config.problems import ConfigError, from_here

PRESET = "experiment"


def dotted(nested: Mapping[str, Any], *, whole: Container[str] = (), prefix: str = "") -> dict[str, Any]:
    """Return nested keys as dotted ones: {"optim": {"lr": 1e-5}} -> {"optim.lr": 1e-5}.

    whole: dotted keys whose values stay as they are, be they mappings
    """
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and key not in whole:
            flat |= dotted(value, whole=whole, prefix=f"{key}.")
        else:
            flat[key] = value
    return flat


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values as dotted keys of the schema, each with its whole value."""
    return dotted(values, whole=expectations())


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return `key=value` in Hydra's grammar for every key of nested or dotted `values`; `experiment` is a preset."""
    return [
        f"+{PRESET}={value}" if key == PRESET else f"{key}={_written(value)}" for key, value in flatten(values).items()
    ]


def overrides_in(file: Path) -> list[str]:
    """Return the values of a YAML file, or of the config.yaml of a run directory, as overrides. Raises ConfigError."""
    file = file / "config.yaml" if file.is_dir() else file
    if not file.exists():
        raise ConfigError([f"{file} does not exist{from_here(file)}; give a YAML file of keys and values."])
    try:
        values = OmegaConf.load(file)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError([f"{file}{_why_no_yaml(error)}"]) from error
    if not isinstance(values, DictConfig):
        raise ConfigError([f"{file} holds a list; give a YAML file of keys and values, such as optim: {{lr: 1e-5}}."])
    mapping: Any = OmegaConf.to_container(values, resolve=False)
    return as_overrides({str(key): value for key, value in mapping.items()})


def _why_no_yaml(error: Exception) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if not isinstance(error, MarkedYAMLError) or mark is None:
        return f" cannot be read ({' '.join(str(error).split())}); give a YAML file of keys and values."
    way_out = (
        "indent with blanks, YAML takes no tabs"
        if "'\\t'" in str(error.problem)
        else "mend this line, or the one before"
    )
    return f":{mark.line + 1}: not YAML ({error.problem}, column {mark.column + 1}); {way_out}."


def is_file_of_values(argument: str) -> bool:
    """Return True for an argument that names a YAML file or a run directory instead of being an override."""
    return "=" not in argument and (argument.endswith((".yaml", ".yml")) or (Path(argument) / "config.yaml").is_file())


def _written(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case Mapping():
            return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(map(_written, value)) + "]"
    # Hydra reads a backslash as one, but before a quote.
    return '"' + re.sub(r'(\\*)("|\Z)', lambda at: at[1] * 2 + ('\\"' if at[2] else ""), str(value)) + '"'
