"""Write one run's lines and metrics to console, files and trackers; whatever fails to write is switched off."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sft.config.secrets import presentable, redacted, without_secrets
from sft.track.card import CURVE
from sft.track.console import Console, sample_table, step_line
from sft.track.curve import LossCurve
from sft.track.files import MetricsFile, TrainingLog, append_line, write_samples
from sft.track.trackers import TrackedRun, TrackerThread

Item = TypeVar("Item")

METRICS, LOG, SKIPPED_STEPS, SAMPLES = "metrics.jsonl", "training.log", "skipped_steps.jsonl", "samples.jsonl"
"""Names in the run directory."""


def open_run(
    run_dir: str | Path,
    *,
    loggers: list[str],
    project: str,
    experiment: str,
    config: Mapping[str, Any],
    total_steps: int,
    start_step: int = 0,
    log_freq: int = 1,
    is_main: bool = True,
) -> RunLog:
    """Open the log of this run. On other ranks than the main one it says nothing.

    training.log, metrics.jsonl and loss.png are always written. `loggers` adds step lines on the console and trackers,
    which are installed (config/checks/packages.py). `start_step` is the last finished step of a resumed
    run; what metrics.jsonl holds beyond it is about to happen again and is dropped.
    """
    project, experiment = redacted(project), redacted(experiment)
    if not is_main:
        return RunLog(total_steps=total_steps, log_freq=log_freq)
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    metrics_file = MetricsFile(run_dir / METRICS, keep_up_to_step=start_step)
    run_log = RunLog(
        total_steps=total_steps,
        log_freq=log_freq,
        run_dir=run_dir,
        console=Console(total_steps, start_step, show_steps="console" in loggers),
        training_log=TrainingLog(run_dir / LOG),
        recorders={
            METRICS: metrics_file,
            CURVE: LossCurve(run_dir / CURVE, metrics_file.path, title=experiment),
        },
    )
    if metrics_file.unreadable_lines:
        run_log.warn(f"{metrics_file.path}: {metrics_file.unreadable_lines} unreadable lines dropped")
    run = TrackedRun(run_dir, project, experiment, without_secrets(config), start_step)
    run_log.add_trackers([name for name in loggers if name not in {"console", "jsonl"}], run)
    return run_log


class RunLog:
    """Sentences go to console and training.log, numbers to everything; see open_run."""

    def __init__(
        self,
        *,
        total_steps: int,
        log_freq: int,
        run_dir: Path | None = None,
        console: Console | None = None,
        training_log: TrainingLog | None = None,
        recorders: Mapping[str, MetricsFile | LossCurve] | None = None,
    ):
        self._total_steps = total_steps
        self._log_freq = log_freq
        self._run_dir = run_dir
        self._console = console
        self._training_log = training_log
        self._recorders = dict(recorders or {})
        self._trackers: dict[str, TrackerThread] = {}
        self._switched_off: set[str] = set()
        self._library_log = _LibraryLog(self) if console else None

    def add_trackers(self, names: Iterable[str], run: TrackedRun) -> None:
        """Start the named trackers; each opens in a thread of its own and nobody waits for it."""
        for name in names:
            self._trackers[name] = TrackerThread(name, run, say=self.say, warn=self.warn)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step; every log_freq steps also print them and tell the trackers.

        May be called again for the same step: validation joins the step's object in metrics.jsonl and is always shown.
        """
        if self._console:
            self._try("console", self._console.advance, step, metrics)
        for name, recorder in self._recorders.items():
            self._try(name, recorder.log, step, metrics)
        if step % self._log_freq == 0 or step == self._total_steps or "train/loss" not in metrics:
            if self._console:
                self._try("console", self._console.show_step, step, metrics)
            if self._training_log:
                self._try(LOG, self._training_log.say, step_line(step, metrics))
            for name, tracker in self._trackers.items():
                self._try(name, tracker.log, step, metrics)

    def say(self, text: str) -> None:
        """Write one sentence on the console and in training.log."""
        text = presentable(text)
        if self._console:
            self._try("console", self._console.say, text)
        if self._training_log:
            self._try(LOG, self._training_log.say, text)

    def skipped_step(self, step: int, *, loss: float, grad_norm: float, rows: list[str]) -> None:
        """Say that a step updated nothing, and append its rows ("file:row") to skipped_steps.jsonl for looking into."""
        self.warn(f"step {step} skipped, nothing updated: loss={loss} grad_norm={grad_norm}; see skipped_steps.jsonl")
        if self._run_dir:
            record = {"step": step, "loss": str(loss), "grad_norm": str(grad_norm), "rows": rows}
            self._try(SKIPPED_STEPS, append_line, self._run_dir / SKIPPED_STEPS, json.dumps(record))

    def samples(self, step: int, answers: list[dict[str, Any]], *, show: int | None = None) -> None:
        """Show what the model answers (row, prompt, answer, expected, score), and keep it in samples.jsonl.

        show: how many of them; None: all.

        What the file holds of this step and later ones is replaced: a resumed run goes that way again.
        """
        answers = [  # before they are cut
            {key: redacted(value) if isinstance(value, str) else value for key, value in sample.items()}
            for sample in answers
        ]
        for line in sample_table(step, answers[:show]):
            self.say(line)
        if self._run_dir:
            self._try(SAMPLES, write_samples, self._run_dir / SAMPLES, step, answers)

    def sync(self) -> None:
        """Bring metrics.jsonl to the disk: a run that goes on from a checkpoint does not take its steps again."""
        if isinstance(metrics := self._recorders.get(METRICS), MetricsFile):
            self._try(METRICS, metrics.sync)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def progress(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        """Yield the items; on a terminal a second bar counts them."""
        return self._console.progress(items, description, total) if self._console else items

    def close(self) -> None:
        """Draw the final curve, let the trackers finish, give the console back. A second call does nothing."""
        for name, part in {**self._recorders, **self._trackers}.items():
            self._try(name, part.close)
        if self._library_log:
            self._library_log.detach()
        if self._console:
            self._try("console", self._console.close)
        if self._training_log:
            self._try(LOG, self._training_log.close)
        self._recorders, self._trackers = {}, {}
        self._console = self._training_log = self._library_log = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _try(self, name: str, act: Callable[..., None], *arguments: Any) -> None:
        """Do it unless `name` failed before; a full disk or a closed pipe must not end a training run."""
        if name in self._switched_off:
            return
        try:
            act(*arguments)
        except Exception as error:
            self._switched_off.add(name)
            self.warn(f"{name} is off for the rest of this run: {error!r}")


class _LibraryLog(logging.Handler):
    """Leads what the other rooms log (logger "sft") into the run's log, where it lands above the progress bar."""

    def __init__(self, run_log: RunLog):
        super().__init__()
        self._run_log = run_log
        self._logger = logging.getLogger("sft")
        self._replaced = self._logger.handlers
        self._logger.handlers = [self]

    def emit(self, record: logging.LogRecord) -> None:
        speak = self._run_log.warn if record.levelno >= logging.WARNING else self._run_log.say
        speak(record.getMessage())

    def detach(self) -> None:
        self._logger.handlers = self._replaced
