"""Let Hydra compose overrides into plain values.

Hydra stops at the first unknown key and refuses `+key=value` for a key that exists. Both are our business (the schema
knows better), so every value override becomes `++key=value` before Hydra sees it; group overrides stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Sweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sft.config.expectations import expectations
from sft.config.foreign import GROUPS, GROUPS_OF_VERL
from sft.config.mappings import PRESET
from sft.config.problems import ConfigError
from sft.config.slips import TYPOGRAPHIC, why_unreadable
from sft.config.values import expand_home

PACKAGE = Path(__file__).resolve().parent.parent
CONFIG_DIR = next((path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir()), PACKAGE / "conf")
"""`sft/conf` in a wheel, `conf` beside `sft` in a checkout."""
CONFIG_NAME = "sft_trainer"

HOME = re.compile(r"(?<=[=\[,])~(?=/)")
"""The ~ of `key=~/data`: Hydra's grammar has no word for it, and no shell expands it there."""

OTHER_SCRIPT = re.compile(r"""(?<=[=\[,])(\s*)([^"'\[\]{}(),\\=]*[^\x00-\x7f][^"'\[\]{}(),\\]*)(?=[,\]]|$)""")
"""A value, or an element of a list, with letters for which the grammar has no word: it has one for them in quotes."""

AMBIGUOUS = re.compile(r"Ambiguous value for argument '\+*([^=']*)=(.*)'$", re.MULTILINE)
"""How Hydra begins to say that a, b is neither a list nor a sweep."""

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)


def compose(overrides: Sequence[str], unusable: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the values that these overrides compose, resolved, not yet checked. Raises ConfigError.

    unusable: takes the overrides that cannot be used, each with its problem, in place of an error about them
    """
    left_out: dict[str, str] = {} if unusable is None else unusable
    forced = force(overrides, left_out)
    if left_out and unusable is None:
        raise ConfigError([*left_out.values()])
    try:
        with _own_hydra():
            return plain(hydra.compose(CONFIG_NAME, forced))
    except COMPOSITION_ERRORS as error:
        raise ConfigError([*left_out.values(), explain(error)]) from error


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Set Hydra up for our directory, also inside a program that uses Hydra: there is one global instance."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def plain(config: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return cast(dict[str, Any], values)


def force(overrides: Sequence[str], unusable: dict[str, str], config_dirs: Sequence[str | Path] = ()) -> list[str]:
    """Write every value override as `++key=value`; those that cannot be used go to `unusable`."""
    parser, forced = OverridesParser.create(), []
    for text in overrides:
        text = HOME.sub(lambda _: expand_home("~"), text)
        if not TYPOGRAPHIC.search(text):
            text = OTHER_SCRIPT.sub(r'\1"\2"', text)
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            unusable[text] = _explain_syntax(text, error)
            continue
        sets = override.type in (OverrideType.CHANGE, OverrideType.ADD)
        directories = (CONFIG_DIR, *config_dirs)
        if override.key_or_group.startswith("hydra."):  # Hydra's own settings
            forced.append(text)
        elif not _is_group(override, directories):
            forced.append(f"++{text.lstrip('+')}" if sets else text)
        elif sets and not isinstance(override.value(), str | list | Sweep):
            unusable[text] = f"{text!r} sets a whole group; choose a file of it (--help lists them) or set single keys."
        elif text.lstrip("+") in GROUPS:
            continue
        elif sets and (problem := _missing_file(override, directories)):
            unusable[text] = problem
        else:  # a preset is added to what is chosen, with or without its plus
            forced.append(f"+{text}" if text.startswith(f"{PRESET}=") else text)
    return forced


def chooses_verls_group(override: str) -> bool:
    return override.lstrip("+") in GROUPS_OF_VERL


def _missing_file(override: Override, directories: Sequence[str | Path]) -> str | None:
    """Return the problem of a group override that names a missing file; None if there is no problem."""
    group, name = override.key_or_group, override.value()
    options = sorted({file.stem for directory in directories for file in Path(directory, group).glob("*.yaml")})
    if not isinstance(name, str) or override.package is not None or group.startswith("hydra") or name in options:
        return None
    if group == "engine":
        return f"engine={name} does not exist; models are sharded by FSDP2: engine=fsdp, or leave it out."
    if (key := MAIN_KEYS.get(group)) and ("/" in name or "." in name):
        return f"{group}={name} would choose a file of values ({', '.join(options)}); write {key}={name}."
    return f"{group}={name} does not exist; choose one of {', '.join(options)}."


MAIN_KEYS = {"model": "model.partial_pretrain", "data": "data.train_files"}


def _is_group(override: Override, directories: Sequence[str | Path]) -> bool:
    key = override.key_or_group
    return (
        override.package is not None
        or "/" in key
        or key == "engine"  # of verl
        or any(Path(directory, key).is_dir() for directory in directories)
    )


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


PLUGINS = {
    "hydra/sweeper": "Optuna's is in the extra sweep: pip install hydra-optuna-sweeper",
    "hydra/launcher": "+sweep.cluster=slurm submits the jobs of a sweep, through the extra sweep: pip install submitit",
}
"""Groups of Hydra whose files come with packages of their own."""


def explain(error: Exception) -> str:
    """Turn an error of Hydra into one sentence for the user."""
    if isinstance(error, OverrideParseException):
        return _explain_syntax(error.override, error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if way_out := PLUGINS.get(group):
            return f"{group}={name} is not installed; {way_out}."
        return f"{group}={name} does not exist; choose one of {', '.join(sorted(error.options))}."
    if several := AMBIGUOUS.match(str(error)):
        key, value = several.groups()
        return f"{key}={value} has several values; write {key}=[{value}] for a list, add --multirun to train each."
    # Composition errors wrap the one that says what happened; the paragraphs after the first list search paths.
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        expected = expectations().get(cause.full_key)
        way_out = f"; it must be {expected}" if expected else ""
        return f"{cause.full_key}: {str(cause).splitlines()[0].rstrip('.')}{way_out}."
    return " ".join(str(cause).split("\n\n")[0].replace("'++", "'").split())


def _explain_syntax(override: str, error: HydraException) -> str:
    return why_unreadable(override, str(error).splitlines()[0])
