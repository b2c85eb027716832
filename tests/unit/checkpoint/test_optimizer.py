"""A checkpoint holds whatever an optimizer remembers, and the run goes on bit for bit."""

from dataclasses import replace

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from sft.checkpoint import load
from sft.checkpoint.manifest import CheckpointError
from sft.checkpoint.optimizer import keys_of
from sft.errors import BugError
from sft.parallel.shards import StoredTensors
from tests.optimizers import Odd
from tests.runs import ABOUT, small_model, start_run

MAKERS = {
    "momentum": lambda weights: torch.optim.SGD(weights, lr=1e-2, momentum=0.9),
    "nothing": lambda weights: torch.optim.SGD(weights, lr=1e-2),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=1e-2),
    "amsgrad": lambda weights: torch.optim.AdamW(weights, lr=1e-2, amsgrad=True),
    "factored": lambda weights: torch.optim.Adafactor(weights, lr=1e-2),
    "numbers": lambda weights: torch.optim.NAdam(weights, lr=1e-2),
    "odd": lambda weights: Odd(weights),
}


def run_with(directory, world, make):
    run = start_run(directory, world)
    return replace(run, optimizer=make(run.model.parameters()))


def resume(run, checkpoint, make):
    model = small_model()
    optimizer = make(model.parameters())
    state = load(checkpoint, model, optimizer, world=run.world, fingerprint=ABOUT["fingerprint"])
    return replace(run, model=model, optimizer=optimizer, state=state)


def memories(run):
    """What is remembered of each weight, in order."""
    return [dict(run.optimizer.state.get(weight, {})) for weight in run.model.parameters()]


def check_same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert type(mine[key]) is type(value), key
            if isinstance(value, torch.Tensor):
                assert mine[key].dtype == value.dtype and torch.equal(mine[key], value), key
            else:
                assert mine[key] == value, key


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_remembered_comes_back_and_the_run_goes_on_bit_for_bit(tmp_path, world_of_one, name):
    make = MAKERS[name]
    run = run_with(tmp_path / "job", world_of_one, make)
    run.train_to(3)
    checkpoint = run.save("STATE")
    again = resume(run, checkpoint, make)
    check_same(memories(again), memories(run))
    ends = []
    for each in (run, again):
        torch.manual_seed(7)
        each.train_to(6)
        ends.append(list(each.model.parameters()))
    assert all(map(torch.equal, *ends))
    check_same(memories(again), memories(run))


def test_a_checkpoint_of_adamw_holds_its_two_moments_and_nothing_else(run):
    run.train_to(2)
    stored = StoredTensors.of_ranks(run.save("STATE") / "state")
    names = [name for name, _ in run.model.named_parameters()]
    keys = ("model", "exp_avg", "exp_avg_sq")
    assert sorted(stored.parts) == sorted(f"{key}/{name}" for key in keys for name in names)
    assert keys_of(stored) == {"exp_avg", "exp_avg_sq"}


def test_a_weight_that_missed_updates_keeps_its_own_count_and_one_without_gradients_has_none(run):
    """Experts that no token met, say: another count would be another bias correction."""
    first, second = run.model
    first.bias.requires_grad_(False)
    run.train_to(2)
    run.model[0].weight.requires_grad_(False)
    run.train_to(5)
    for weight in (first.weight, first.bias):
        weight.requires_grad_(True)
    again = resume(run, run.save("STATE"), MAKERS["adamw"])
    assert [float(state["step"]) if state else None for state in memories(again)] == [2, None, 5, 5]
    check_same(memories(again), memories(run))
    assert second.weight in run.optimizer.state


@pytest.mark.parametrize(
    ("wrote", "reads", "told"),
    [
        ("adamw", "momentum", "it remembers exp_avg, exp_avg_sq of 0.weight, and this run's optimizer momentum_buffer"),
        ("momentum", "adamw", "it remembers momentum_buffer of 0.weight, and this run's optimizer exp_avg, exp_avg_sq"),
        ("adamw", "nothing", "it remembers exp_avg, exp_avg_sq of 0.weight, and this run's optimizer nothing"),
        ("nothing", "adamw", "it remembers nothing of 0.weight, and this run's optimizer exp_avg, exp_avg_sq"),
        ("amsgrad", "adamw", "exp_avg, exp_avg_sq, max_exp_avg_sq of 0.weight, and this run's optimizer exp_avg, "),
    ],
)
def test_another_optimizer_is_refused_by_what_it_remembers(tmp_path, world_of_one, wrote, reads, told):
    run = run_with(tmp_path / "job", world_of_one, MAKERS[wrote])
    run.train_to(1)
    checkpoint = run.save("STATE")
    with pytest.raises(CheckpointError, match=told) as refused:
        resume(run, checkpoint, MAKERS[reads])
    assert "optim.name" in str(refused.value) and "trainer.init_from_checkpoint" in str(refused.value)


def test_before_the_first_update_there_is_nothing_to_remember(run):
    again = resume(run, run.save("STATE"), MAKERS["adamw"])
    assert memories(again) == [{}] * 4


def test_a_tensor_made_of_several_is_kept_as_these(tmp_path, world_of_one):
    class Paired(Odd):
        def _move(self, weight, part, gradient, lr):
            state = self.state[weight]
            pair = state.setdefault("pair", TwoTensor(torch.zeros_like(part), torch.ones_like(part)))
            pair.a.add_(gradient)
            part.sub_(pair.a, alpha=lr)

    run = run_with(tmp_path / "job", world_of_one, Paired)
    run.train_to(2)
    again = resume(run, run.save("STATE"), Paired)
    for mine, theirs in zip(memories(again), memories(run), strict=True):
        assert torch.equal(mine["pair"].a, theirs["pair"].a) and torch.equal(mine["pair"].b, theirs["pair"].b)


def test_what_is_neither_tensor_nor_number_is_a_bug(run):
    run.train_to(1)
    run.optimizer.state[run.model[0].weight]["history"] = ["a"]
    with pytest.raises(BugError, match="remembers a list as history of 0"):
        run.save("STATE")


def test_the_random_state_is_not_touched_by_what_an_optimizer_draws(tmp_path, world_of_one):
    class Rounding(Odd):
        def _move(self, weight, part, gradient, lr):
            torch.rand(3)
            super()._move(weight, part, gradient, lr)

    run = run_with(tmp_path / "job", world_of_one, Rounding)
    run.train_to(1)
    checkpoint = run.save("STATE")
    model = small_model()
    optimizer, before = Rounding(model.parameters()), torch.get_rng_state()
    world = replace(run.world, size=2)  # on as many ranks as wrote it, theirs is put back
    load(checkpoint, model, optimizer, world=world, fingerprint=ABOUT["fingerprint"])
    assert torch.equal(torch.get_rng_state(), before)
