"""When the model is asked for samples."""

from types import SimpleNamespace

import pytest

from sft.train import answers


@pytest.mark.parametrize(
    ("step", "is_over", "due"),
    [(3, False, False), (4, False, True), (5, True, True)],  # the last: ended early, of 100 steps
)
def test_samples_are_due_by_interval_and_at_the_end_also_an_early_one(step, is_over, due, monkeypatch):
    trainer = SimpleNamespace(generate_freq=4, generate_max_new_tokens=1)
    job = SimpleNamespace(
        config=SimpleNamespace(trainer=trainer),
        state=SimpleNamespace(step=step),
        total_steps=100,
        is_over=is_over,
        memory=None,
    )
    asked = []
    monkeypatch.setattr(answers, "greedy", lambda *_: asked.append(step))
    answers.sample_if_due(job, [SimpleNamespace(input_ids=[1])], None, None)  # pyright: ignore[reportArgumentType]
    assert bool(asked) == due
