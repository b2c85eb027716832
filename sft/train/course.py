"""Follow how the losses of a run develop: best validation, early stopping, warnings. Pure functions, no I/O.

    note_training, note_validation    what happened goes into the course
    compare_by, note_metric           which validation was best, and by what
    out_of_patience                   whether to give up
    warnings                          overfitting, underfitting, a rate that is too high: in plain words

Every rank calls them with the same numbers, so all ranks come to the same verdict without asking each other. The
course is a part of TrainState: a resumed run remembers it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from sft.errors import InputError
from sft.types import Course

STRETCHES_PER_RUN = 20
SHORTEST_STRETCH = 10  # steps; the mean over fewer says more about the rows than about the model
RISES = 2  # validations in a row that got worse before that is called overfitting
HARDLY_FALLEN = 0.98  # of the loss it began with
RISEN = 1.1
DEFAULT_METRIC = "val/loss"
SHOULD_FALL = ("val/loss", "val/perplexity")  # all others should rise


def note_training(course: Course, loss: float, step: int, total_steps: int) -> None:
    """Take in the training loss of a step. One that is not finite was skipped, and says nothing about the course."""
    if not math.isfinite(loss):
        return
    if course.first_loss is None:
        course.first_loss = loss
    course.last_loss = loss
    for mean in (course.in_stretch, course.since_validation):
        mean[0] += loss
        mean[1] += 1
    if step % stretch_length(total_steps) == 0:
        total, steps = course.in_stretch
        course.stretches.append(total / steps)
        course.in_stretch = [0.0, 0]


def stretch_length(total_steps: int) -> int:
    """Return the number of steps over which the training loss is averaged, a twentieth of the run."""
    return max(SHORTEST_STRETCH, total_steps // STRETCHES_PER_RUN)


def note_validation(course: Course, metrics: Mapping[str, float]) -> None:
    """Take in the val/* metrics of a validation."""
    course.last_val = {k: value for k, value in metrics.items() if k.startswith("val/") and math.isfinite(value)}
    total, steps = course.since_validation
    course.since_validation = [0.0, 0]
    if steps and "val/loss" in course.last_val:
        course.validations = [*course.validations, [metrics["val/loss"], total / steps]][-RISES - 1 :]


def compare_by(course: Course, name: str) -> str | None:
    """Compare validations by this metric from now on. Returns a sentence if that makes the best so far meaningless."""
    before, step, course.metric = course.metric, course.best_step, name
    if before != name:
        course.best_step, course.best_value, course.stale = -1, None, 0
    if before == name or step < 0:
        return None
    return f"trainer.early_stop_metric is {name} from here on: that step {step} was the best by {before} is forgotten"


def note_metric(course: Course, value: float, *, step: int, min_delta: float) -> None:
    """Remember whether this validation was the best so far: better than the best before by more than min_delta."""
    gain = math.inf if course.best_value is None else course.best_value - value
    if not course.metric.startswith(SHOULD_FALL):
        gain = math.inf if course.best_value is None else -gain
    if math.isfinite(value) and gain > min_delta:
        course.best_step, course.best_value, course.stale = step, value, 0
    else:
        course.stale += 1


def out_of_patience(course: Course, metric: str | None, patience: int) -> bool:
    """Return True if `patience` validations in a row brought nothing better; never where no metric is watched."""
    return metric is not None and course.stale >= patience


def check_metric(metric: str | None, val_files: Mapping[str, object]) -> None:
    """Raise InputError where trainer.early_stop_metric is the loss of a validation file that is not there."""
    name = (metric or "").removeprefix("val/loss/")
    known = sorted(val_files) if len(val_files) > 1 else []
    if metric is not None and metric.startswith("val/loss/") and name not in known:
        there = ", ".join(f"val/loss/{file}" for file in known) or "only one file, which is val/loss"
        raise InputError(f"trainer.early_stop_metric={metric}: data.val_files has no {name!r}; it has {there}.")


def warnings(course: Course, *, step: int, total_steps: int, warmup_steps_ratio: float) -> dict[str, str]:
    """Return what looks wrong by now: {kind: one sentence with a way out}, without the kinds already said."""
    found = {
        "overfitting": _overfitting(course),
        "diverging": _diverging(course),
        "underfitting": _underfitting(course, step, total_steps, warmup_steps_ratio),
    }
    return {kind: text for kind, text in found.items() if text and kind not in course.warned}


def _overfitting(course: Course) -> str | None:
    val, train = zip(*course.validations, strict=True) if course.validations else ((), ())
    if len(val) <= RISES or not (_rises(val) and _rises(train[::-1])):
        return None
    best = f" (the best so far is step {course.best_step})" if course.best_step > 0 else ""
    return (
        f"overfitting: the validation loss rose {RISES} times in a row ({_told(val)}) while the training loss fell "
        f"({_told(train)}). The model learns its rows by heart{best}: train fewer epochs or with a lower optim.lr, "
        "give it more rows, or let trainer.early_stop_metric=val/loss and trainer.save_best=true decide."
    )


def _diverging(course: Course) -> str | None:
    first, *later = course.stretches or [0.0]
    if not later or later[-1] <= RISEN * first:
        return None
    return (
        f"the training loss is above where it began ({_told((first, later[-1]))}): optim.lr is too high for this "
        "model, or optim.warmup_steps_ratio too small. Stop, and begin again with a third of it."
    )


def _underfitting(course: Course, step: int, total_steps: int, warmup_steps_ratio: float) -> str | None:
    warm_up = math.ceil(warmup_steps_ratio * total_steps / stretch_length(total_steps))
    first, *later = course.stretches or [0.0]
    now = sum(later[-2:]) / 2
    if len(later) < warm_up + 3 or not HARDLY_FALLEN * first < now <= RISEN * first:
        return None
    return (
        f"underfitting: after {step} of {total_steps} steps the training loss has hardly fallen "
        f"({_told((first, now))}). Raise optim.lr (or model.lora_rank), train longer, and see with python -m "
        "sft.inspect whether the right tokens are trained; or the model knew these rows before."
    )


def _rises(values: Sequence[float]) -> bool:
    return all(before < after for before, after in pairwise(values))


def _told(values: Sequence[float]) -> str:
    return " -> ".join(f"{value:.4g}" for value in values)
