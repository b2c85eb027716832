"""Schedules at known steps; which parameters decay; one declaration of each optimizer and schedule."""

from itertools import pairwise
from typing import get_args, get_type_hints

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sft.config.compose import CONFIG_DIR
from sft.config.schema import OptimConfig
from sft.parallel.world import World, process_group
from sft.train.optim import (
    OPTIMIZERS,
    SCHEDULES,
    hidden_matrices,
    lr_at,
    scale_gradients,
    squared_norm_of_gradients,
    update,
)
from tests.models import causal_model
from tests.optimizers import optim


def rates(steps, total, schedule="cosine", lr=1e-5, warmup=0.0, minimum=0.0):
    settings = optim(lr=lr, lr_scheduler=schedule, warmup_steps_ratio=warmup, min_lr_ratio=minimum)
    return [lr_at(step, total, settings) for step in steps]


def test_cosine_at_known_steps():
    found = rates([1000, 2000, 3000, 4000, 5000], 5000)
    assert found == pytest.approx([9.045e-06, 6.545e-06, 3.455e-06, 9.549e-07, 0], rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
def test_warm_up_is_linear_and_reaches_lr(schedule):
    assert rates([1, 5, 10], 100, schedule, lr=1.0, warmup=0.1) == pytest.approx([0.1, 0.5, 1.0])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear"])
@pytest.mark.parametrize("minimum", [0.0, 0.1])
@pytest.mark.parametrize("total", [2, 7, 100])
def test_the_last_step_runs_at_the_minimum(schedule, minimum, total):
    assert rates([total], total, schedule, lr=1.0, warmup=0.1, minimum=minimum) == pytest.approx([minimum])


def test_shapes_between():
    assert rates([50], 100, "linear", lr=1.0) == pytest.approx([0.5])
    assert rates([50, 90, 95], 100, "wsd", lr=1.0) == pytest.approx([1.0, 1.0, 0.5])
    assert rates([1, 50, 100], 100, "constant", lr=1.0) == [1.0, 1.0, 1.0]


def test_a_single_step_is_not_wasted():
    assert rates([1], 1, "cosine", lr=1.0) == [1.0]


def test_vectors_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    model[0].weight.requires_grad_(False)
    model.append(torch.nn.Linear(4, 2))
    optimizer = OPTIMIZERS["adamw"].build(model, optim(weight_decay=0.1))
    decay = {tuple(p.shape): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {(2, 4): 0.1, (4,): 0.0, (2,): 0.0}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 5  # the frozen matrix is not there


def test_a_step_over_the_parts_is_the_step_over_dtensors_bit_for_bit(monkeypatch):
    met = []
    fused = torch._fused_adamw_
    monkeypatch.setattr(
        torch, "_fused_adamw_", lambda weights, *rest, **named: (met.extend(weights), fused(weights, *rest, **named))
    )

    with process_group(World(rank=0, size=1, local_rank=0)):
        mesh = init_device_mesh("cpu", (1,))

        def train(make):
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
            for module in model:
                for name, weight in list(module.named_parameters()):
                    setattr(module, name, torch.nn.Parameter(distribute_tensor(weight.detach(), mesh, [Shard(0)])))
            optimizer = make(model)
            for _ in range(3):
                for weight in model.parameters():
                    weight.grad = distribute_tensor(torch.randn(weight.shape), mesh, [Shard(0)])
                optimizer.step()
            moments = [optimizer.state[weight]["exp_avg_sq"] for weight in model.parameters()]
            assert all(isinstance(tensor, DTensor) for tensor in moments), "a checkpoint asks them for their boxes"
            return [tensor.full_tensor() for tensor in [*model.parameters(), *moments]]

        ours = train(lambda model: OPTIMIZERS["adamw"].build(model, optim(lr=0.1, weight_decay=0.0)))
        assert met and not any(isinstance(weight, DTensor) for weight in met)
        plain = train(lambda model: torch.optim.AdamW(model.parameters(), 0.1, (0.9, 0.95), weight_decay=0, fused=True))
    assert all(map(torch.equal, ours, plain))


def test_norm_and_scale_of_gradients_are_those_of_torch():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    model[0].weight.requires_grad_(False)
    model(torch.randn(3, 8, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    expected = float(torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf")))
    assert float(squared_norm_of_gradients(model)) ** 0.5 == pytest.approx(expected, rel=1e-6)
    scale_gradients(model, 0.25)
    assert float(squared_norm_of_gradients(model)) ** 0.5 == pytest.approx(expected / 4, rel=1e-6)


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


def after_three_steps(name, gradients, clip, *, finite=(True, True, True), by_torch=False):
    """Return (weights and state, how often the host waited) after a step with each of `gradients`."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    optimizer, reads = OPTIMIZERS[name].build(model, optim(lr=0.1)), HostReads()
    for scale, is_finite in zip(gradients, finite, strict=True):
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape) * scale
        if by_torch:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            continue
        norm = squared_norm_of_gradients(model).sqrt()
        with reads:
            update(optimizer, model, norm, torch.tensor(is_finite), clip)
    state = [tensor for weight in model.parameters() for tensor in optimizer.state[weight].values()]
    return [*model.parameters(), *state], reads.count


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_an_update_clips_as_torch_does(name):
    scales = (0.01, 1.0, 100.0)  # shorter than the limit, and longer
    ours, _ = after_three_steps(name, scales, 1.0)
    theirs, _ = after_three_steps(name, scales, 1.0, by_torch=True)
    assert len(ours) == len(theirs)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_a_step_that_is_not_finite_moves_nothing(name):
    """Neither weights nor moments nor the count of steps; the next step is as if it had not been."""
    ours, _ = after_three_steps(name, (1.0, torch.nan, 2.0), 1.0, finite=(True, False, True))
    torch.manual_seed(0)
    untouched, _ = after_three_steps(name, (1.0, 0.0, 2.0), 1.0, finite=(True, False, True))
    assert all(map(torch.equal, ours, untouched))
    assert all(tensor.isfinite().all() for tensor in ours)


def test_adamw_is_told_on_the_device_and_the_host_does_not_wait():
    scales, finite = (1.0, torch.inf, 2.0), (True, False, True)
    assert after_three_steps("adamw", scales, 1.0, finite=finite)[1] == 0
    assert after_three_steps("sgd", scales, 1.0, finite=finite)[1] > 0


@pytest.mark.parametrize("elements", [1_000, 20_000_000])
def test_the_norm_of_a_long_gradient_is_that_of_fp64_however_it_is_cut(elements):
    """A single sum in fp32 is 1e-3 off here, and 2e-4 off for a third of it."""
    gradient = torch.empty(elements).uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    exact = sum(float(piece.double().square().sum()) for piece in gradient.split(10_000))

    def squared_norm(part):
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(part)
        module.weight.grad = part
        return float(squared_norm_of_gradients(module))

    assert squared_norm(gradient) == pytest.approx(exact, rel=1e-9)
    for ranks in (2, 4):
        assert sum(map(squared_norm, gradient.chunk(ranks))) == pytest.approx(exact, rel=1e-9)


def test_the_norm_of_bf16_gradients_is_taken_in_fp32():
    weight = torch.nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    weight.grad = torch.full((1000,), 0.1, dtype=torch.bfloat16)
    module = torch.nn.Module()
    module.weight = weight
    assert float(squared_norm_of_gradients(module)) == pytest.approx(1000 * float(weight.grad[0]) ** 2, rel=1e-6)


def test_a_rank_without_gradients_adds_nothing():
    assert float(squared_norm_of_gradients(torch.nn.Linear(2, 2))) == 0


def test_warm_up_by_a_number_of_steps_beats_the_ratio():
    def after(steps):
        return optim(lr=1.0, lr_scheduler="constant", warmup_steps=steps, warmup_steps_ratio=0.5)

    assert [lr_at(update, 100, after(4)) for update in (1, 2, 4, 5)] == [0.25, 0.5, 1.0, 1.0]
    assert lr_at(1, 100, after(0)) == 1.0
    assert lr_at(100, 100, after(200)) == 0.5  # longer than the run: it never gets there


@pytest.mark.parametrize(("key", "declared"), [("name", OPTIMIZERS), ("lr_scheduler", SCHEDULES)])
def test_the_configuration_offers_what_is_declared_and_says_so(key, declared):
    assert set(get_args(get_type_hints(OptimConfig)[key])) == set(declared)
    for file in (CONFIG_DIR / "optim").glob("*.yaml"):
        (line,) = (line for line in file.read_text().splitlines() if line.startswith(f"{key}:"))
        missing = [name for name in declared if name not in line.partition("#")[2]]
        assert not missing, f"{file.name}: the comment of {key} does not name {missing}"


def test_every_schedule_is_done_at_the_end_or_never_moves():
    for name, height in SCHEDULES.items():
        heights = [height(p / 100) for p in range(1, 101)]
        assert all(0 <= later <= earlier <= 1 for earlier, later in pairwise(heights)), name
        assert heights[-1] == pytest.approx(0, abs=1e-12) or set(heights) == {1.0}, name


def test_a_constant_rate_is_exactly_that_whatever_the_minimum():
    for minimum in (0.0, 0.1, 0.3, 1 / 3, 0.7):
        assert rates([1, 7, 100], 100, "constant", lr=1.7e-5, minimum=minimum) == [1.7e-5] * 3


def test_muon_moves_hidden_matrices_as_torch_does_and_the_rest_by_adamw():
    """Against torch's own Muon and AdamW, each on its share of the weights; the same groups, one state."""
    model, twin = (causal_model(seed=3) for _ in range(2))
    names = hidden_matrices(model)
    assert "model.layers.0.self_attn.q_proj.weight" in names and "model.layers.1.mlp.down_proj.weight" in names
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in names)
    ours = OPTIMIZERS["muon"].build(model, optim(lr=0.02, weight_decay=0.1, name="muon"))
    weights = dict(twin.named_parameters())
    rest = [weight for name, weight in weights.items() if name not in names]
    theirs = [
        torch.optim.Muon([weights[n] for n in names], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([w for w in rest if w.ndim >= 2], lr=0.02, betas=(0.9, 0.95), weight_decay=0.1),
        torch.optim.AdamW([w for w in rest if w.ndim < 2], lr=0.02, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for _ in range(3):
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in (ours, *theirs):
            optimizer.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-5, atol=1e-6, msg=name)
    assert set(ours.state) == set(model.parameters()), "a checkpoint asks one state for everything"


def test_sgd_is_torchs_with_the_first_beta_as_momentum():
    model, twin = (causal_model(seed=3) for _ in range(2))
    ours = OPTIMIZERS["sgd"].build(model, optim(lr=0.1, weight_decay=0.0, name="sgd"))
    theirs = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
