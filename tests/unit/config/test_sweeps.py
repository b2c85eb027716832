"""What --multirun makes of the command line: jobs, their directories, and what a process of its own is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from sft.config import cli, load_config
from sft.config.sweep import Job, SweepOptions


class Trained:
    """Notes what it is given, and finds lr=1e-3 the best."""

    jobs: ClassVar[list[Job]] = []
    ranks: ClassVar[int] = 0

    def __init__(self, options: SweepOptions) -> None:
        self.options = options
        Trained.jobs = []

    def train(self, jobs: Sequence[Job]) -> None:
        Trained.jobs += jobs
        Trained.ranks = self.options.ranks

    def value(self, job: Job) -> float:
        return math.log10(job.config.optim.lr / 1e-3) ** 2

    def compare(self) -> int:
        return 0


def jobs_of(*arguments: str) -> list[Job]:
    with pytest.raises(SystemExit) as end:
        cli(lambda config: pytest.fail("not in this process"), arguments, sweeper=Trained)
    assert end.value.code == 0, end.value
    return Trained.jobs


def test_a_job_is_the_same_run_in_a_process_of_its_own(here: Path, runnable: list[str]) -> None:
    (here / "mine.yaml").write_text("optim: {weight_decay: 0.5, lr: 7.0}\n")
    jobs = jobs_of("mine.yaml", "+experiment=lora", *runnable, "-m", "optim.lr=1e-3,1e-4", "trainer.seed=3,4")
    assert [job.label for job in jobs] == [f"lr_{lr}-seed_{seed}" for lr in ("0.001", "0.0001") for seed in (3, 4)]
    assert len({job.config.trainer.default_local_dir for job in jobs}) == 4
    for job in jobs:
        assert "-m" not in job.arguments
        alone: list[object] = []
        cli(alone.append, job.arguments)
        assert alone == [job.config]


def test_jobs_lie_in_one_folder_that_is_named_by_what_they_share(runnable: list[str]) -> None:
    first, second = (
        Path(job.config.trainer.default_local_dir) for job in jobs_of(*runnable, "-m", "optim.lr=1e-3,1e-4")
    )
    assert first.parent == second.parent and first.parent.name.startswith("sweep-model-rows-")
    (other,) = {job.config.trainer.default_local_dir for job in jobs_of(*runnable, "-m", "optim.lr=1e-2,1e-3")} & {
        str(first)
    }
    assert other == str(first), "a wider sweep finds the jobs of the first one"
    given = jobs_of(*runnable, "-m", "optim.lr=1e-3,1e-4", "trainer.default_local_dir=one")
    assert [job.config.trainer.default_local_dir for job in given] == ["one/lr_0.001", "one/lr_0.0001"]
    own = jobs_of(*runnable, "-m", "optim.lr=1e-3,1e-4", "trainer.default_local_dir='here/${optim.lr}'")
    assert [job.config.trainer.default_local_dir for job in own] == ["here/0.001", "here/0.0001"]


def test_the_ranks_of_a_job_are_those_it_is_checked_with(
    runnable: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs_of(*runnable, "-m", "optim.lr=1e-3,1e-4", "+sweep.ranks=8")
    assert Trained.ranks == 8
    with pytest.raises(SystemExit) as end:
        cli(print, [*runnable, "-m", "data.train_batch_size=12,16", "+sweep.ranks=8"], sweeper=Trained)
    assert end.value.code == 2 and "data.train_batch_size=12 must be a multiple of dp=8" in capsys.readouterr().err
    monkeypatch.setenv("NPROC_PER_NODE", "4")
    jobs_of(*runnable, "-m", "optim.lr=1e-3,1e-4")
    assert Trained.ranks == 4
    monkeypatch.setenv("NPROC_PER_NODE", "gpu")  # torchrun takes it, and a run that is no sweep never reads it
    ran: list[object] = []
    cli(ran.append, runnable, sweeper=Trained)
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "+sweep.rank=8", "optim.lr=1,2"], "sweep.rank is not a key; did you mean sweep.ranks?"),
        (["-m", "+sweep.ranks=0", "optim.lr=1,2"], "sweep.ranks=0"),
        (["-m", "+sweep.cluster=kubernetes", "optim.lr=1,2"], "sweep.cluster=kubernetes"),
        (["+sweep.ranks=2"], "sweep.ranks=2 is read by --multirun alone"),
        (
            ["-m", "hydra/sweeper=nowhere"],
            "hydra/sweeper=nowhere is not installed; Optuna's is in the extra sweep: pip",
        ),
        (
            ["-m", "hydra/launcher=submitit_slurm"],
            "hydra/launcher=submitit_slurm is not installed; +sweep.cluster=slurm",
        ),
    ],
)
def test_keys_of_a_sweep_that_mean_nothing(
    arguments: list[str], said: str, runnable: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli(print, [*runnable, *arguments], sweeper=Trained)
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_parameters_are_written_as_hydra_writes_them(runnable: list[str]) -> None:
    jobs_of(*runnable, "-m", "optim.lr=1e-3,1e-4", "+sweep.parameters={timeout_min:600,slurm_partition:gpu}")
    assert SweepOptions(parameters="{timeout_min:600,slurm_partition:gpu}").parameters == {  # pyright: ignore[reportArgumentType]
        "timeout_min": 600,
        "slurm_partition": "gpu",
    }


def test_a_preset_may_ask_for_a_sweep_whose_jobs_do_not_sweep(here: Path, runnable: list[str]) -> None:
    preset = here / "my_conf" / "experiment" / "mine.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text("# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {++optim.lr: '1e-3,1e-4'}}}\n")
    jobs = jobs_of("--config-dir", str(here / "my_conf"), "+experiment=mine", *runnable)
    assert [job.config.optim.lr for job in jobs] == [1e-3, 1e-4]
    assert all("hydra.mode=RUN" in job.arguments for job in jobs)


def test_optuna_chooses_by_what_the_jobs_before_reached(here: Path, runnable: list[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="the extra sweep is not installed")
    search = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=12",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.sampler.seed=1",
    ]
    jobs = jobs_of(*runnable, "-m", *search, "optim.lr=tag(log,interval(1e-6,1))")
    rates = [job.config.optim.lr for job in jobs]
    assert len(set(rates)) == 12 and min(abs(math.log10(rate / 1e-3)) for rate in rates) < 0.5
    assert rates == [
        job.config.optim.lr for job in jobs_of(*runnable, "-m", *search, "optim.lr=tag(log,interval(1e-6,1))")
    ]
    assert load_config(runnable).optim.lr not in rates
    assert all(Path(job.config.trainer.default_local_dir).name == job.label for job in jobs)
