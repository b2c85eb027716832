"""Train the jobs of a sweep, each in a process of its own, and compare what they reached. Imports no torch.

    python -m sft.fsdp_sft_trainer ... --multirun optim.lr=1e-5,3e-5,1e-4 [+sweep.ranks=8]

A job that fails does not end the others. The same command goes on: a finished job says so, a stopped one continues.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sft.config.checks.packages import is_importable
from sft.config.problems import ConfigError
from sft.config.secrets import presentable
from sft.config.sweep import Job, SweepOptions

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SHUTDOWN_S = 300
TRAINER = "sft.fsdp_sft_trainer"


class Sweep:
    """The jobs that were trained by now, with the exit code of each."""

    def __init__(self, options: SweepOptions):
        if options.cluster and not is_importable("submitit"):
            raise ConfigError(
                [f"sweep.cluster={options.cluster} needs submitit, which is not installed: pip install submitit."]
            )
        self._options = options
        self._trained: list[tuple[Job, int]] = []

    def train(self, jobs: Sequence[Job]) -> None:
        """Train each of the jobs, in turn or on a cluster. A signal is passed on to the job, and ends the sweep."""
        commands = [command_of(job, self._options.ranks) for job in jobs]
        if self._options.cluster:
            codes = _on_a_cluster(jobs, commands, self._options)
            self._trained += zip(jobs, codes, strict=True)
            return
        for number, (job, command) in enumerate(zip(jobs, commands, strict=True), start=len(self._trained) + 1):
            print(
                presentable(
                    f"sweep: job {number}, {job.label or 'the only one'}: {job.config.trainer.default_local_dir}"
                ),
                flush=True,
            )
            process = subprocess.Popen(command)
            with _passing_on_signals(process) as heard:
                code = process.wait()
            self._trained.append((job, code))
            if heard:
                self.compare()
                print("sweep: stopped; the same command goes on from here", file=sys.stderr)
                sys.exit(128 + heard[0])

    def value(self, job: Job) -> float:
        """Return what a trained job is compared by; not a number if it failed."""
        from sft.track.sweep import outcome_of

        code = next(code for other, code in reversed(self._trained) if other is job)
        value = outcome_of(job.label, Path(job.config.trainer.default_local_dir), self._metric(job), code).value
        return math.nan if value is None else value

    def compare(self) -> int:
        """Print all jobs, best first, and write sweep.md, sweep.json and sweep.png. Returns 1 if one did not finish."""
        from sft.track.sweep import outcome_of, table, write_outcomes

        metric = self._metric(self._trained[0][0])
        outcomes = [
            outcome_of(job.label, Path(job.config.trainer.default_local_dir), metric, code)
            for job, code in self._trained
        ]
        directory = Path(os.path.commonpath([Path(outcome.run_dir).absolute() for outcome in outcomes]))
        print(presentable(table(outcomes, metric)))
        for path in write_outcomes(outcomes, metric, directory if len(outcomes) > 1 else directory.parent):
            print(presentable(f"sweep: {path}"))
        return 0 if all(outcome.is_whole for outcome in outcomes) else 1

    def _metric(self, job: Job) -> str:
        config = job.config
        fallback = "val/loss" if config.data.has_val else "train/loss"
        return self._options.metric or config.trainer.early_stop_metric or fallback


def command_of(job: Job, ranks: int) -> list[str]:
    """Return the command of a job: of one process, or of torchrun, told to let a run that is stopped save itself."""
    if ranks == 1:
        return [sys.executable, "-m", TRAINER, *job.arguments]
    signals = ",".join(
        name.name for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    waits = [*([f"--shutdown-timeout={SHUTDOWN_S}"] if _torchrun_can_wait() else []), f"--signals-to-handle={signals}"]
    return [sys.executable, *torchrun, *waits, "-m", TRAINER, *job.arguments]


def _torchrun_can_wait() -> bool:
    """Return whether torchrun can be told how long a run may save: that of torch 2.11 waits for 30 s. Imports none."""
    torch = find_spec("torch")
    assert torch is not None and torch.origin is not None
    return "shutdown-timeout" in (Path(torch.origin).parent / "distributed" / "run.py").read_text(encoding="utf-8")


@contextmanager
def _passing_on_signals(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass SIGTERM, SIGINT and SIGUSR1 on to a process; yields those that were heard."""
    heard: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        heard.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_a_cluster(jobs: Sequence[Job], commands: Sequence[list[str]], options: SweepOptions) -> list[int]:
    """Submit every job at once, wait for all of them, and return their exit codes (1 for one that was lost)."""
    import submitit

    folder = Path(os.path.commonpath([Path(job.config.trainer.default_local_dir).absolute().parent for job in jobs]))
    executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=options.cluster)
    executor.update_parameters(**options.parameters)
    submitted = [executor.submit(submitit.helpers.CommandFunction(command)) for command in commands]
    for job, on_cluster in zip(jobs, submitted, strict=True):
        print(
            presentable(
                f"sweep: {job.label} is job {on_cluster.job_id} of {options.cluster}: {on_cluster.paths.stdout}"
            ),
            flush=True,
        )
    codes = []
    for job, on_cluster in zip(jobs, submitted, strict=True):
        problem = on_cluster.exception()
        codes.append(0 if problem is None else 1)
        if problem is not None:
            print(presentable(f"sweep: {job.label} failed; {on_cluster.paths.stderr} says why"), file=sys.stderr)
    return codes
