"""Tables of courses and what is said about them."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from sft.errors import InputError
from sft.train.course import (
    check_metric,
    compare_by,
    note_metric,
    note_training,
    note_validation,
    out_of_patience,
    warnings,
)
from sft.types import Course, TrainState


def warned(course: Course, *, step: int = 100, total_steps: int = 200, warm_up: float = 0.0) -> set[str]:
    return set(warnings(course, step=step, total_steps=total_steps, warmup_steps_ratio=warm_up))


def course_of(losses: list[float], total_steps: int) -> Course:
    course = Course()
    for step, loss in enumerate(losses, start=1):
        note_training(course, loss, step, total_steps)
    return course


@pytest.mark.parametrize(
    ("validations", "expected"),
    [
        ([[1.2, 1.5], [1.3, 1.0], [1.4, 0.5]], True),
        ([[1.2, 1.5], [1.3, 1.0], [1.3, 0.5]], False),  # rose once, then stood
        ([[1.2, 1.5], [1.1, 1.0], [1.4, 0.5]], False),  # rose once only
        ([[1.2, 0.5], [1.3, 1.0], [1.4, 1.5]], False),  # training rises too: something else is wrong
        ([[1.2, 1.5], [1.3, 1.0]], False),
        ([], False),
    ],
)
def test_overfitting(validations: list[list[float]], expected: bool) -> None:
    assert warned(Course(validations=validations)) == ({"overfitting"} if expected else set())


@pytest.mark.parametrize(
    ("stretches", "warm_up", "expected"),
    [
        ([2.0, 1.5, 1.2, 1.0], 0.0, set()),
        ([2.0, 2.0, 2.0], 0.0, set()),  # too early to tell
        ([2.0, 2.0, 1.99, 1.99], 0.0, {"underfitting"}),
        ([2.0, 2.0, 1.99, 1.99], 0.1, set()),  # two stretches of 20 were warm-up
        ([2.0, 2.0, 1.99, 1.99, 1.99, 1.99], 0.1, {"underfitting"}),
        ([2.0, 2.3], 0.0, {"diverging"}),
        ([2.0, 2.1], 0.0, set()),
        ([2.0, 1.0, 1.5, 2.5, 2.5], 0.0, {"diverging"}),
        ([], 0.0, set()),
    ],
)
def test_a_loss_that_does_not_fall(stretches: list[float], warm_up: float, expected: set[str]) -> None:
    assert warned(Course(stretches=stretches), warm_up=warm_up) == expected


def test_every_kind_is_said_once_with_its_numbers() -> None:
    course = Course(stretches=[2.0, 2.3])
    said = warnings(course, step=20, total_steps=200, warmup_steps_ratio=0.0)
    assert "2 -> 2.3" in said["diverging"] and "optim.lr" in said["diverging"]
    course.warned |= said
    assert warned(course) == set()


def test_stretches_are_means_over_a_twentieth_of_the_run_and_ten_steps_at_least() -> None:
    assert course_of([1.0] * 10 + [3.0] * 10 + [9.0], 40).stretches == [1.0, 3.0]
    assert course_of([1.0] * 10 + [3.0] * 10, 400).stretches == [2.0]
    course = course_of([4.0, math.nan, 2.0], 10)  # a skipped step says nothing
    assert (course.first_loss, course.last_loss, course.in_stretch) == (4.0, 2.0, [6.0, 2])


def test_a_validation_stands_beside_the_training_loss_since_the_one_before() -> None:
    course = Course()
    note_validation(course, {"val/loss": 9.0})  # before the first step
    for step, loss in enumerate([4.0, 2.0], start=1):
        note_training(course, loss, step, 100)
    note_validation(course, {"val/loss": 5.0, "val/perplexity": math.inf, "train/loss": 2.0})
    note_training(course, 1.0, 3, 100)
    note_validation(course, {"val/loss": 6.0})
    assert course.validations == [[5.0, 3.0], [6.0, 1.0]]
    assert course.last_val == {"val/loss": 6.0}


@pytest.mark.parametrize(
    ("metric", "values", "min_delta", "best_step", "stale"),
    [
        ("val/loss", [3.0, 2.0, 2.5, 2.4], 0.0, 2, 2),
        ("val/loss", [3.0, 2.95, 2.92], 0.1, 1, 2),  # better, but by too little
        ("val/loss", [3.0, 2.95, 2.8], 0.1, 3, 0),
        ("val/token_accuracy", [0.5, 0.6, 0.55], 0.0, 2, 1),
        ("val/perplexity", [20.0, math.nan, 19.0], 0.0, 3, 0),
        ("val/loss", [math.nan], 0.0, -1, 1),
    ],
)
def test_the_best_validation(metric: str, values: list[float], min_delta: float, best_step: int, stale: int) -> None:
    course = Course(metric=metric)
    for step, value in enumerate(values, start=1):
        note_metric(course, value, step=step, min_delta=min_delta)
    assert (course.best_step, course.stale) == (best_step, stale)


def test_another_metric_knows_no_best_and_has_lost_no_patience() -> None:
    course = Course(best_step=4, best_value=0.9, stale=3)
    assert compare_by(course, "val/loss") is None and course.best_step == 4
    assert "step 4 was the best by val/loss" in (compare_by(course, "val/token_accuracy") or "")
    assert (course.best_step, course.best_value, course.stale) == (-1, None, 0)
    note_metric(course, 0.1, step=5, min_delta=0.0)
    assert course.best_step == 5
    fresh = Course(stale=2)
    assert compare_by(fresh, "val/perplexity") is None and fresh.stale == 0


def test_patience() -> None:
    assert not out_of_patience(Course(stale=2), "val/loss", 3)
    assert out_of_patience(Course(stale=3), "val/loss", 3)
    assert not out_of_patience(Course(stale=9), None, 3)


def test_the_loss_of_a_file_that_is_not_there_is_refused() -> None:
    check_metric("val/loss/chat", {"chat": 0, "text": 0})
    check_metric("val/loss", {"chat": 0})
    check_metric(None, {})
    with pytest.raises(InputError, match="no 'chats'; it has val/loss/chat, val/loss/text"):
        check_metric("val/loss/chats", {"chat": 0, "text": 0})
    with pytest.raises(InputError, match="only one file, which is val/loss"):
        check_metric("val/loss/chat", {"chat": 0})


def test_the_course_survives_json_and_checkpoints_of_earlier_versions_lack_it() -> None:
    state = TrainState(step=3, validated=3, course=course_of([4.0, 2.0], 10))
    assert TrainState.of(asdict(state)) == state
    assert TrainState.of({"step": 3, "validated": 0}) == TrainState(step=3, validated=0)
