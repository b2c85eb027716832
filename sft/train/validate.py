"""Validate when it is due, over every sample, and remember how it went."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add

from sft.parallel.world import entering
from sft.track.run_log import RunLog
from sft.train import course
from sft.train.answers import Questions, grade_answers
from sft.train.build import Job
from sft.train.forecast_memory import explaining_memory
from sft.train.requests import Listener
from sft.train.score import Score, score


def validate_if_due(job: Job, questions: Questions, run_log: RunLog, listener: Listener) -> dict[str, float]:
    """Validate if it is due after this step and not done yet; return its metrics, otherwise {}."""
    if not is_due(job.config.trainer.test_freq, job) or job.state.validated == job.state.step:
        return {}
    metrics = evaluate(job, questions, run_log, listener)
    if metrics:
        job.state.validated = job.state.step
    return metrics


def is_due(test_freq: int | float, job: Job) -> bool:
    """Return True if this step ends with a validation. test_freq: steps, below 1 a part of the run, -1 an epoch.

    Always after the last one, unless test_freq is 0.
    Before the first step only if trainer.val_before_train says so.
    """
    if job.val is None:
        return False
    if job.state.step == 0:
        return job.config.trainer.val_before_train
    if test_freq == 0:
        return False
    interval = job.steps_per_epoch if test_freq == -1 else job.steps_of(test_freq)
    return job.state.step % interval == 0 or job.state.step == job.total_steps


def watch(job: Job, metrics: Mapping[str, float], run_log: RunLog) -> None:
    """Remember how a step and its validation went, and say what looks wrong, each kind of it once."""
    state, trainer, optim = job.state, job.config.trainer, job.config.optim
    if "train/loss" in metrics:
        course.note_training(state.course, metrics["train/loss"], state.step, job.total_steps)
    if "val/loss" in metrics:
        course.note_validation(state.course, metrics)
    if "val/loss" in metrics and state.step > 0:  # the model one begins with is no result of the run
        value = metrics[state.course.metric]
        course.note_metric(state.course, value, step=state.step, min_delta=trainer.early_stop_min_delta)
    warmup = optim.warmup_steps_ratio if optim.warmup_steps is None else optim.warmup_steps / job.total_steps
    said = course.warnings(state.course, step=state.step, total_steps=job.total_steps, warmup_steps_ratio=warmup)
    for text in said.values():
        run_log.warn(text)
    state.course.warned |= said


def evaluate(job: Job, questions: Questions, run_log: RunLog, listener: Listener) -> dict[str, float]:
    """Compute token-weighted loss, perplexity and accuracy over every validation sample, equal on any ranks.

    Where data.val_files has several entries, the loss of each as well; with trainer.generate_metric, what it measures.
    Empty if the run was asked to stop meanwhile:
    resuming begins with this validation.
    """
    assert job.val is not None
    entering(f"validation after step {job.state.step}")
    with explaining_memory(job.memory, f"validation after step {job.state.step}"):
        scores = score(
            job.model, job.val, job.mesh, job.world.device, progress=run_log.progress, must_stop=listener.must_stop
        )
    if scores is None:
        return {}
    graded = grade_answers(job, questions, run_log, listener)
    return {} if graded is None else metrics_of(scores) | graded


def metrics_of(scores: dict[str, Score]) -> dict[str, float]:
    """Return the numbers of a validation under their names in metrics.jsonl."""
    of_each = {f"val/loss/{name}": part.loss for name, part in scores.items()} if len(scores) > 1 else {}
    return reduce(add, scores.values()).numbers("val/") | of_each
