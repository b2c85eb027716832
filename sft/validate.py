"""Validation: when it is due, its numbers over every sample, and what the run makes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from sft import judge
from sft.build import Job
from sft.distributed import ALL_RANKS, entering, sum_over
from sft.loss import token_ce_sum_and_hits
from sft.requests import Listener
from sft.track import RunLog


def validate_if_due(job: Job, run_log: RunLog, listener: Listener) -> dict[str, float]:
    """The metrics of `evaluate` if validation is due after this step and was not yet done; otherwise none."""
    if not is_due(job.config.trainer.test_freq, job) or job.state.validated == job.state.step:
        return {}
    metrics = evaluate(job, run_log, listener)
    if metrics:
        job.state.validated = job.state.step
    return metrics


def is_due(test_freq: int, job: Job) -> bool:
    """Whether to validate after this step: every test_freq steps, or every epoch (-1); always after the last.

    Before the first step only if trainer.val_before_train says so.
    """
    if job.val is None:
        return False
    if job.state.step == 0:
        return job.config.trainer.val_before_train
    if test_freq == 0:
        return False
    interval = job.steps_per_epoch if test_freq == -1 else test_freq
    return job.state.step % interval == 0 or job.state.step == job.total_steps


def watch(job: Job, metrics: Mapping[str, float], run_log: RunLog) -> None:
    """Remember how a step and its validation went, and say what looks wrong, each kind of it once."""
    state, trainer, optim = job.state, job.config.trainer, job.config.optim
    if "train/loss" in metrics:
        judge.note_training(state.course, metrics["train/loss"], state.step, job.total_steps)
    if "val/loss" in metrics:
        judge.note_validation(state.course, metrics)
    if "val/loss" in metrics and state.step > 0:  # the model one begins with is no result of the run
        name = trainer.early_stop_metric or judge.DEFAULT_METRIC
        judge.note_metric(state.course, name, metrics[name], step=state.step, min_delta=trainer.early_stop_min_delta)
    said = judge.warnings(
        state.course, step=state.step, total_steps=job.total_steps, warmup_steps_ratio=optim.warmup_steps_ratio
    )
    for text in said.values():
        run_log.warn(text)
    state.course.warned |= said


@torch.no_grad()
def evaluate(job: Job, run_log: RunLog, listener: Listener) -> dict[str, float]:
    """Token-weighted loss, perplexity and accuracy over every validation sample, equal on any number of ranks.

    Where data.val_files has several entries, the loss of each as well. Empty if the run was asked to stop meanwhile:
    resuming begins with this validation.
    """
    assert job.val is not None
    entering(f"validation after step {job.state.step}")
    job.model.eval()
    mesh, ids_of = job.mesh, job.val.mixture.ids
    sums = {name: np.zeros(4) for name in ids_of}  # Σ w·CE, right predictions, Σ w, supervised tokens
    forwards = [len(job.val.micro_batches(ids, dp_size=mesh.dp_size, dp_rank=mesh.dp_rank)) for ids in ids_of.values()]
    batches = ((name, batch) for name, ids in ids_of.items() for batch in job.batches(job.val, ids))
    for name, batch in run_log.progress(batches, "validation", sum(forwards)):
        ce_sum, hits = torch.stack(token_ce_sum_and_hits(job.model, batch.to(job.world.device))).tolist()
        sums[name] += (ce_sum, hits, batch.weight_sum, batch.num_supervised_tokens)
        if listener.must_stop():
            break
    job.model.train()
    if listener.must_stop():
        return {}
    totals = np.reshape(sum_over(ALL_RANKS, *np.concatenate(list(sums.values()))), (-1, 4))
    ce_sum, hits, weight_sum, supervised_tokens = totals.sum(axis=0).tolist()
    loss = ce_sum / weight_sum
    metrics = {
        "val/loss": loss,
        "val/perplexity": math.exp(min(loss, 700.0)),  # e^700 is the last one a float holds
        "val/token_accuracy": hits / supervised_tokens,
    }
    if len(sums) > 1:
        losses = (totals[:, 0] / totals[:, 2]).tolist()
        metrics |= {f"val/loss/{name}": loss for name, loss in zip(sums, losses, strict=True)}
    return metrics
