"""What a run that goes on says of its schedule."""

from types import SimpleNamespace

from sft.train.build import describe_schedule
from sft.types import TrainState


def test_a_resume_says_the_rate_of_its_next_step():
    optim = SimpleNamespace(lr=1e-3, lr_scheduler="linear", warmup_steps=None, warmup_steps_ratio=0.0, min_lr_ratio=0.0)
    state = TrainState(step=60, updates=59)
    told = describe_schedule(SimpleNamespace(optim=optim), state, 100)  # pyright: ignore[reportArgumentType]
    assert told == "the schedule of 100 steps gives 0.0004 at the next step, update 60"
