"""Call a function with the configuration of argv: Hydra's flags, our messages, exit code 2 for a bad configuration."""

from __future__ import annotations

import gc
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
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
    plain,
)
from sft.config.door import checked
from sft.config.help import help_text
from sft.config.mappings import as_overrides, is_file_of_values, overrides_in
from sft.config.options import take_options
from sft.config.problems import ConfigError
from sft.config.schema import SftConfig
from sft.config.secrets import presentable
from sft.config.slips import refuse_slips
from sft.config.streams import steady_streams
from sft.config.sweep import Job, JobFailedError, Sweeper, SweepOptions, directory_of, label_of, ranks_asked_for
from sft.errors import let_another_rank_speak, point_upwards, spare_the_restarts

SEARCHES = re.compile(r"\+?hydra/sweeper=(?!basic$)")


def cli(
    run: Callable[[SftConfig], object],
    arguments: Sequence[str] | None = None,
    *,
    world_size: int | None = None,
    needs_weights: bool = True,
    sweeper: Callable[[SweepOptions], Sweeper] | None = None,
) -> None:
    """Call `run` with the configuration that argv composes; with --multirun once per job; with --help not at all.

    arguments: in place of argv's. world_size, needs_weights: as `checked`.
    sweeper: makes what trains the jobs of a sweep, in processes of their own, in place of `run`
    """
    steady_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"--help", "-h"} & set(arguments):
        return say_help()
    with exit_on_problems():
        _refuse_without_temporary_files()
        swept = SweepOptions()
        if sweeper:
            given = [text for text in arguments if text.lstrip("+").startswith("sweep.")]
            is_sweep = {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments)
            ranks = ranks_asked_for() if is_sweep else []  # torchrun has read it for any other run: it may say "gpu"
            swept, arguments = take_options([*ranks, *arguments], SweepOptions, "sweep")
        asked = _Asked(list(arguments), world_size, needs_weights)
        sweep = None
        if sweeper and asked.is_sweep:
            asked.world_size, sweep = swept.ranks, sweeper(swept)
        if sweep and asked.is_search:
            asked.search(sweep)
            sys.exit(sweep.compare())
        jobs = asked.jobs()
        if sweeper and not sweep and len(jobs) > 1:  # a preset asked for it
            sweep = sweeper(swept)
        elif sweeper and not sweep and given:
            raise ConfigError([f"{given[0].lstrip('+')} is read by --multirun alone; add it, or leave the key out."])
    if sweep and jobs:
        sweep.train(jobs)
        sys.exit(sweep.compare())
    for job in jobs:
        run(job.config)


@contextmanager
def exit_on_problems() -> Iterator[None]:
    """End the process with code 2 at a ConfigError. One rank of a node says what is wrong: a file may be missing there
    alone.
    """
    try:
        yield
    except ConfigError as error:
        if os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0":
            print(presentable(error), file=sys.stderr, flush=True)
            point_upwards()
            spare_the_restarts()
        else:
            let_another_rank_speak()
        sys.exit(2)


def say_help() -> None:
    """Print the help on rank 0; quietly where the reader has seen enough (`--help | head`)."""
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        print(help_text(), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains when it ends


def _refuse_without_temporary_files() -> None:
    """Raise ConfigError where no directory takes temporary files: torch makes one while it is imported."""
    try:
        gettempdir()
    except FileNotFoundError as error:
        raise ConfigError([f"{error.strerror}; set TMPDIR to a directory that this user may write to."]) from error


class _Asked:
    """What argv asks for: one run, a sweep over given values, or a search that chooses the next values by itself."""

    def __init__(self, arguments: list[str], world_size: int | None, needs_weights: bool):
        parser = get_args_parser()
        refuse_slips(arguments, parser._option_string_actions)
        parsed = parser.parse_intermixed_args(arguments)
        self.world_size, self._needs_weights = world_size, needs_weights
        self.is_sweep = parsed.multirun or "hydra.mode=MULTIRUN" in parsed.overrides
        self.is_search = self.is_sweep and any(SEARCHES.match(text) for text in parsed.overrides)
        if self.is_sweep and ("TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1):
            raise ConfigError(
                [
                    "--multirun cannot run under torchrun: a process group lives for one run, and every rank would "
                    "sweep on its own; leave torchrun out: +sweep.ranks=8 starts one for each job."
                ]
            )
        self._completes = parsed.shell_completion  # its words, install=bash and query=bash, look like overrides
        self._overrides = parsed.overrides
        self._flags = [text for text in arguments if text not in parsed.overrides]
        self._unusable: dict[str, str] = {}
        config_dirs = [path for path in (parsed.config_dir, parsed.config_path) if path]
        self._files = [] if self._completes else [text for text in parsed.overrides if is_file_of_values(text)]
        self._typed = [text for text in parsed.overrides if text not in self._files]
        if not self._completes:
            in_files = [text for file in self._files for text in overrides_in(Path(file))]
            self._from_files = force(in_files, self._unusable, config_dirs)
            self._forced = [*self._from_files, *force(self._typed, self._unusable, config_dirs)]

    def jobs(self) -> list[Job]:
        """Compose and check every job: one, several of a sweep, none for --help, --cfg and completion."""
        if self._completes:
            _through_hydra(["--shell-completion"], self._overrides)
            return []
        only_values = all(text.startswith("++") and "hydra" not in text for text in self._forced)
        if only_values and not self._flags:  # hydra.main composes twice, the first time to learn whether it is a sweep
            composed = [(compose([*self._from_files, *self._typed], {}), self._typed)]
        else:  # a preset may ask for a sweep, too
            try:
                composed = _through_hydra(self._flags, self._forced)
            except ConfigError as error:
                raise ConfigError([*self._unusable.values(), *error.problems]) from error
            composed = [(values, self._typed_of(texts)) for values, texts in composed]
        labels = _keep_apart(composed)
        jobs = [self._job(label, *each) for label, each in zip(labels, composed, strict=True)]
        if self._unusable and not jobs:  # --help or --cfg
            raise ConfigError([*self._unusable.values()])
        _refuse_shared_directory([job.config for job in jobs])
        return jobs

    def search(self, sweeper: Sweeper) -> None:
        """Let a sweeper of Hydra's, such as Optuna's, choose the values of each job by what those before it reached."""
        given = set(self._forced)

        def train(values: dict[str, Any], texts: list[str]) -> float:
            texts = self._typed_of(texts)
            own = [text for text in texts if text not in given]
            values["trainer"]["default_local_dir"] = directory_of(values, own)
            job = self._job(label_of(own), values, texts)
            sweeper.train([job])
            value = sweeper.value(job)
            if math.isnan(value):
                raise JobFailedError(f"{job.label} failed; hydra.sweeper.max_failure_rate says how many may")
            return value

        try:
            _through_hydra(self._flags, self._forced, train)
        except JobFailedError as error:  # the sweeper gave up
            print(presentable(f"sweep: {error}"), file=sys.stderr)

    def _typed_of(self, texts: Sequence[str]) -> list[str]:
        """Return what the command line says of a job: the overrides of files give way to it, whatever the names."""
        of_files, verls = set(self._from_files), [text for text in self._typed if chooses_verls_group(text)]
        return [*(text for text in texts if text not in of_files), *verls]  # Hydra never saw verl's

    def _job(self, label: str, values: dict[str, Any], texts: list[str]) -> Job:
        config = checked(values, texts, _say, self.world_size, self._unusable, self._needs_weights)
        flags = [text for text in self._flags if text not in ("-m", "--multirun")]
        mode = [] if self.is_sweep else ["hydra.mode=RUN"]  # where a preset asks for a sweep
        directory = as_overrides({"trainer.default_local_dir": config.trainer.default_local_dir})
        return Job(label, config, (*flags, *self._files, *texts, *mode, *directory))


def _through_hydra(
    flags: Sequence[str],
    overrides: Sequence[str],
    train: Callable[[dict[str, Any], list[str]], float] | None = None,
) -> list[tuple[dict[str, Any], list[str]]]:
    """Compose configurations, each with its overrides: none (--help, --cfg), one, or one per job of a sweep.

    train: is called with each of them, for a sweeper that needs to know what a job reached before it chooses the next.
    Without it they are handed out, not run, inside hydra.main: it would shorten the traceback of a failing run.
    """
    composed: list[tuple[dict[str, Any], list[str]]] = []
    problems: list[str] = []

    @hydra.main(config_path=str(CONFIG_DIR), config_name=CONFIG_NAME, version_base="1.3")
    def hand_out(config: DictConfig) -> float | None:
        try:
            composed.append((plain(config), list(HydraConfig.get().overrides.task)))
        except COMPOSITION_ERRORS as error:  # Hydra would print its own line about it
            problems.append(explain(error))
            return None
        return train(*composed[-1]) if train else None

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


def _keep_apart(jobs: Sequence[tuple[dict[str, Any], Sequence[str]]]) -> list[str]:
    """Give jobs of a sweep that share a run directory a folder each in it; returns their labels, as `lr_1e-05`."""
    directories = [values["trainer"]["default_local_dir"] for values, _ in jobs]
    common = set.intersection(*(set(texts) for _, texts in jobs)) if jobs else set()
    labels = []
    for (values, texts), directory in zip(jobs, directories, strict=True):
        own = [text for text in texts if text not in common]
        labels.append(label_of(own))
        if directories.count(directory) > 1:
            values["trainer"]["default_local_dir"] = directory_of(values, own)
    return labels


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
        print(presentable(text), file=sys.stderr)


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
