"""What a sweep (`--multirun optim.lr=1e-5,3e-5`) is made of: its own keys, its jobs, and the directory of each."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal, Protocol

import yaml
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from sft.config.compose import key_of
from sft.config.mappings import flatten
from sft.config.run_name import ROOT, name_of
from sft.config.schema import SftConfig

UNFIT_FOR_A_PATH = re.compile(r"[^\w.+-]+")


def _mapping(text: Any) -> Any:
    return yaml.safe_load(text.replace(":", ": ")) if isinstance(text, str) else text


@dataclass(frozen=True)
class SweepOptions:
    """The keys `+sweep.*`, which only a sweep reads."""

    ranks: Annotated[
        int, Field(ge=1, description="ranks of every job: torchrun is started for each where it is > 1")
    ] = 1
    metric: Annotated[
        str | None, Field(description="what jobs are compared by; null: early_stop_metric, else val/loss or train/loss")
    ] = None
    cluster: Annotated[
        Literal["slurm", "local"] | None,
        Field(description="where jobs run, through submitit: slurm, local (all at once here); null: here, in turn"),
    ] = None
    parameters: Annotated[
        dict[str, Any],
        BeforeValidator(_mapping),
        Field(description="submitit's, such as {timeout_min:600,slurm_partition:gpu,gpus_per_node:8}"),
    ] = Field(default_factory=dict)


@plain_dataclass(frozen=True)
class Job:
    """One run of a sweep. arguments: what a process of its own is given; label: what sets it apart."""

    label: str
    config: SftConfig
    arguments: tuple[str, ...]


class JobFailedError(Exception):
    """A job has nothing to be compared by; Hydra's sweepers count such jobs."""


class Sweeper(Protocol):
    """Trains jobs and compares them: sft/train/sweep.py."""

    def train(self, jobs: Sequence[Job]) -> None:
        """Train each of the jobs; one that fails does not end the others."""
        ...

    def value(self, job: Job) -> float:
        """Return what a trained job is compared by; not a number if it failed."""
        ...

    def compare(self) -> int:
        """Show all jobs that were trained, best first. Returns the exit code of the command."""
        ...


def ranks_asked_for() -> list[str]:
    """Return NPROC_PER_NODE, by which scripts/train.sh is told the ranks, as an override of a sweep."""
    ranks = os.environ.get("NPROC_PER_NODE")
    return [f"sweep.ranks={ranks}"] if ranks else []


def label_of(own: Sequence[str]) -> str:
    """Name a job by the overrides that only it has: `lr_1e-5`."""
    return "-".join(f"{key_of(text).rpartition('.')[2]}_{text.partition('=')[2]}" for text in own)


def directory_of(values: dict[str, Any], own: Sequence[str]) -> str:
    """Return the run directory of a job whose overrides `own` set it apart: a folder in the one that all jobs share."""
    shared = values["trainer"]["default_local_dir"]
    if shared is None:
        swept = {key_of(text) for text in own}
        flat = {key: value for key, value in flatten(values).items() if key not in swept}
        shared = f"{ROOT}/sweep-{name_of(flat)}"
    return f"{shared}/{UNFIT_FOR_A_PATH.sub('_', label_of(own))}"
