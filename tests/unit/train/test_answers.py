"""When the model is asked for samples, and how ranks that say different things make the same forwards."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sft.train import answers


@pytest.mark.parametrize(
    ("step", "is_over", "due"),
    [(3, False, False), (4, False, True), (5, True, True)],  # the last: ended early, of 100 steps
)
def test_samples_are_due_by_interval_and_at_the_end_also_an_early_one(step, is_over, due, monkeypatch):
    trainer = SimpleNamespace(generate_freq=4)
    job = SimpleNamespace(
        config=SimpleNamespace(trainer=trainer),
        state=SimpleNamespace(step=step, validated=0),
        total_steps=100,
        is_over=is_over,
        memory=None,
    )
    asked = []
    monkeypatch.setattr(answers, "answer_all", lambda *_: asked.append(step))
    questions: Any = SimpleNamespace(prompts=[None], grader=None)
    answers.sample_if_due(job, questions, None, None)  # pyright: ignore[reportArgumentType]
    assert bool(asked) == due


def test_what_a_validation_has_graded_is_not_answered_once_more(monkeypatch):
    trainer = SimpleNamespace(generate_freq=4)
    state = SimpleNamespace(step=4, validated=4)
    job: Any = SimpleNamespace(config=SimpleNamespace(trainer=trainer), state=state, is_over=False)
    monkeypatch.setattr(answers, "answer_all", lambda *_: pytest.fail("asked twice"))
    questions: Any = SimpleNamespace(prompts=[None], grader="graded")
    answers.sample_if_due(job, questions, None, None)  # pyright: ignore[reportArgumentType]


def test_a_wish_to_stop_ends_the_answers_before_the_next_forward(world_of_one):
    model: Any = torch.nn.Linear(1, 1)
    wishes = iter([False, False, True])
    listener: Any = SimpleNamespace(must_stop=lambda: next(wishes))
    together = answers._Together(model, listener)
    for _ in range(2):
        model(torch.zeros(1, 1))
    with pytest.raises(answers._Stopped):
        model(torch.zeros(1, 1))
    together.part()
    model(torch.zeros(1, 1))  # as before


def test_a_rank_keeps_company_until_nobody_has_more_to_say(world_of_one, monkeypatch):
    """Others speak for three more forwards: this rank makes three for nothing."""
    others, forwards = iter([1.0, 1.0, 1.0, 0.0]), []
    monkeypatch.setattr(answers, "max_over_all_ranks", lambda mine: [max(mine, next(others))])

    class Model(torch.nn.Module):
        def forward(self, **_):
            forwards.append(1)

    model: Any = Model()
    together = answers._Together(model, SimpleNamespace(must_stop=lambda: False))  # pyright: ignore[reportArgumentType]
    together.keep_company(torch.device("cpu"))
    assert len(forwards) == 3
