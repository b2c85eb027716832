"""Call a function with the configuration of argv: Hydra's flags, our messages, exit code 2 for a bad configuration."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sft.config.compose import (
    COMPOSITION_ERRORS,
    CONFIG_DIR,
    CONFIG_NAME,
    chooses_verls_group,
    compose,
    explain,
    force,
    key_of,
    plain,
)
from sft.config.door import checked
from sft.config.expectations import expectations
from sft.config.help import help_text
from sft.config.mappings import is_file_of_values, overrides_in
from sft.config.names import ALIASES
from sft.config.problems import ConfigError
from sft.config.schema import SftConfig
from sft.config.secrets import presentable
from sft.errors import let_another_rank_speak, spare_the_restarts

UNFIT_FOR_A_PATH = re.compile(r"[^\w.+-]+")


def cli(
    run: Callable[[SftConfig], object],
    arguments: Sequence[str] | None = None,
    *,
    world_size: int | None = None,
    needs_weights: bool = True,
) -> None:
    """Call `run` with the configuration that argv composes; with --multirun once per job; with --help not at all.

    arguments: in place of argv's. world_size, needs_weights: as `checked`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(arguments):
        return say_help()
    try:
        configs = _configs(arguments, world_size, needs_weights)
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0":  # a file may be missing on one node only
            print(presentable(error), file=sys.stderr, flush=True)
            spare_the_restarts()
        else:
            let_another_rank_speak()
        sys.exit(2)
    for config in configs:
        run(config)


def say_help() -> None:
    """Print the help on rank 0; quietly where the reader has seen enough (`--help | head`)."""
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        print(help_text(), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains when it ends


def _configs(arguments: Sequence[str], world_size: int | None, needs_weights: bool) -> list[SftConfig]:
    _refuse_dashes(arguments)
    parsed = get_args_parser().parse_intermixed_args(arguments)
    if parsed.shell_completion:  # its words, install=bash and query=bash, look like overrides
        _through_hydra(["--shell-completion"], parsed.overrides)
        return []
    sweep = parsed.multirun or "hydra.mode=MULTIRUN" in parsed.overrides
    if sweep and ("TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        raise ConfigError(
            [
                "--multirun cannot run under torchrun: a process group lives for one run, and every rank would sweep "
                "on its own; start one torchrun per job, or sweep on a single device without torchrun."
            ]
        )
    flags = [text for text in arguments if text not in parsed.overrides]
    unusable: dict[str, str] = {}
    config_dirs = [path for path in (parsed.config_dir, parsed.config_path) if path]
    typed = [text for text in parsed.overrides if not is_file_of_values(text)]
    files = [Path(text) for text in parsed.overrides if is_file_of_values(text)]
    from_files = force([text for file in files for text in overrides_in(file)], unusable, config_dirs)
    overrides = [*from_files, *force(typed, unusable, config_dirs)]
    only_values = all(text.startswith("++") and "hydra" not in text for text in overrides)
    if only_values and not flags:  # hydra.main composes twice, the first time to learn whether it is a sweep
        composed = [(compose([*from_files, *typed], {}), typed)]
    else:  # a preset may ask for a sweep, too
        try:
            composed = _through_hydra(flags, overrides)
        except ConfigError as error:
            raise ConfigError([*unusable.values(), *error.problems]) from error
        verls = [text for text in typed if chooses_verls_group(text)]  # Hydra never saw them
        of_files = set(from_files)  # the command line beats them, whatever the names
        composed = [(values, [*(text for text in texts if text not in of_files), *verls]) for values, texts in composed]
    _keep_apart(composed)
    configs = [checked(values, overrides, _say, world_size, unusable, needs_weights) for values, overrides in composed]
    if unusable and not configs:  # --help or --cfg
        raise ConfigError([*unusable.values()])
    _refuse_shared_directory(configs)
    return configs


def _refuse_dashes(arguments: Sequence[str]) -> None:
    names = expectations().keys() | ALIASES.keys()
    dashed = [text for text in arguments if text.startswith("--") and text[2:].partition("=")[0] in names]
    if dashed:
        raise ConfigError(
            [f"{text}: keys have no dashes; write {text[2:].partition('=')[0]}=value." for text in dashed]
        )


def _through_hydra(flags: Sequence[str], overrides: Sequence[str]) -> list[tuple[dict[str, Any], list[str]]]:
    """Compose configurations, each with its overrides: none (--help, --cfg), one, or one per job of a sweep.

    The configurations are handed out, not run, inside hydra.main: it would shorten the traceback of a failing run.
    """
    composed: list[tuple[dict[str, Any], list[str]]] = []
    problems: list[str] = []

    @hydra.main(config_path=str(CONFIG_DIR), config_name=CONFIG_NAME, version_base="1.3")
    def hand_out(config: DictConfig) -> None:
        try:
            composed.append((plain(config), list(HydraConfig.get().overrides.task)))
        except COMPOSITION_ERRORS as error:  # Hydra would print its own line about it
            problems.append(explain(error))

    with TemporaryDirectory() as scratch, _hydra_arguments([*overrides, f"hydra.sweep.dir={scratch}", *flags]):
        try:
            hand_out()
        except COMPOSITION_ERRORS as error:
            problems.append(explain(error))
    if problems:
        raise ConfigError(problems)
    return composed


@contextmanager
def _hydra_arguments(arguments: list[str]) -> Iterator[None]:
    """Let Hydra read these arguments in place of argv, and raise its errors instead of a shortened print."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _keep_apart(jobs: Sequence[tuple[dict[str, Any], Sequence[str]]]) -> None:
    """Give jobs of a sweep that share a run directory a folder each in it, called after what differs: `lr_1e-05`."""
    directories = [values["trainer"]["default_local_dir"] for values, _ in jobs]
    common = set.intersection(*(set(texts) for _, texts in jobs)) if jobs else set()
    for (values, texts), directory in zip(jobs, directories, strict=True):
        if directory is not None and directories.count(directory) > 1:
            own = [text for text in texts if text not in common]
            label = "-".join(f"{key_of(text).rpartition('.')[2]}_{text.partition('=')[2]}" for text in own)
            values["trainer"]["default_local_dir"] = f"{directory}/{UNFIT_FOR_A_PATH.sub('_', label)}"


def _refuse_shared_directory(configs: Sequence[SftConfig]) -> None:
    directories = {config.trainer.default_local_dir for config in configs}
    if len(directories) < len(configs):
        raise ConfigError(
            [
                f"{len(configs)} jobs share {len(directories)} trainer.default_local_dir, so that one would resume "
                r"another; give each its own, for example trainer.default_local_dir='runs/lr_${optim.lr}'."
            ]
        )


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


@contextmanager
def without_collections() -> Iterator[None]:
    """Import without garbage collection: none runs meanwhile, and none looks through what the imports made.

    Half a million objects are made, nearly all of them to stay, and the collector walks over all of them again and
    again: a quarter of the time that the imports take, and a pause in any later step.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
