"""One loss, whatever the split: micro-batches, layout, ranks and checkpointing never change the number."""

from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from sft import fsdp_sft_trainer as trainer
from sft import load_config
from sft.errors import InputError
from sft.parallel.world import World, process_group
from tests.assets import tiny_model_dir
from tests.launch import train_all

STEPS = ["trainer.total_training_steps=4"]  # the third step is the smaller one that ends the epoch
LAYOUTS = {"packed": ["use_remove_padding=true"], "padded": ["use_remove_padding=false"]}


def curve(metrics):
    """Losses and gradient norms; from the second step on, a loss depends on every gradient before it."""
    return [value for line in metrics for value in (line["train/loss"], line["train/grad_norm"])]


ONE_BY_ONE = "data.micro_batch_size_per_gpu=1"
SHARED = [*LAYOUTS["packed"], "ulysses_sequence_parallel_size=2"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "initializer_range": 0.1}
BUDGETS = {  # a budget of the longest sample, so that the four samples of a step need several micro-batches
    "budget": ["data.max_length=80", "data.max_tokens_per_gpu=80"],
    "balanced": ["data.balance_dp_token=true", ONE_BY_ONE],
}
BF16 = "model.fsdp_config.compute_dtype=bf16"
BF16_WEIGHTS = ["model.fsdp_config.model_dtype=bf16", BF16]
OTHER_LOSS = ["trainer.test_freq=4", "trainer.val_before_train=true", "optim.loss=eaft"]
OTHER_LOSS += ["optim.label_smoothing=0.1", "optim.z_loss=1e-3", "model.neftune_alpha=1"]


def runs_of(ranks, moe):
    """All runs of these tests on so many ranks: name -> overrides. moe: a model with experts."""
    sizes = {1: (2, 4), 2: (1, 2), 4: (1,)}[ranks]
    runs = {
        (layout, size, checkpointing): [
            *overrides,
            f"data.micro_batch_size_per_gpu={size}",
            f"model.enable_gradient_checkpointing={checkpointing}",
        ]
        for layout, overrides in LAYOUTS.items()
        for size in sizes
        for checkpointing in ("false", "true")
    }
    validation = ["trainer.total_training_steps=1", "trainer.test_freq=1", ONE_BY_ONE]
    runs |= {("validation", rows): [*validation, f"data.val_max_samples={rows}"] for rows in (1, 7)}
    if ranks == 4:
        return runs
    runs |= {
        (layout, policy): [*overrides, *options, "trainer.test_freq=4"]
        for layout, overrides in LAYOUTS.items()
        for policy, options in BUDGETS.items()
    }
    runs["bf16 weights"] = BF16_WEIGHTS
    experts = [f"model.partial_pretrain={moe}", "optim.lr=1e-3"]
    if ranks == 1:
        return runs | {
            "reference": [ONE_BY_ONE],
            "other loss": [*OTHER_LOSS, ONE_BY_ONE],
            "before training": ["trainer.val_before_train=true"],
            "experts": [*experts, ONE_BY_ONE],
            "experts, whole": [*experts, "data.micro_batch_size_per_gpu=4"],
            "experts without": [*experts, "model.router_aux_loss=0"],
        }
    return runs | {
        "other loss, padded": [*OTHER_LOSS, *LAYOUTS["padded"]],
        "other loss, packed": [*OTHER_LOSS, *LAYOUTS["packed"]],
        "other loss, shared": [*OTHER_LOSS, ONE_BY_ONE, *SHARED],
        "experts, padded": [*experts, *LAYOUTS["padded"]],
        "experts, packed": [*experts, *LAYOUTS["packed"], ONE_BY_ONE],
        "experts, shared": [*experts, *SHARED],
        "experts, checkpointed": [*experts, "model.enable_gradient_checkpointing=true"],
        "bf16": [BF16, *LAYOUTS["packed"]],
        "first": [],
        "again": [],
        "other seed": ["trainer.seed=2"],
    }


@pytest.fixture(scope="module")
def found(base, tmp_path_factory):
    """(ranks, name of a run) -> its lines of metrics.jsonl."""
    home, found = tmp_path_factory.mktemp("one_loss"), {}
    moe = tiny_model_dir(home / "moe", kind="qwen3_moe", router_aux_loss_coef=3.0, output_router_logits=True, **EXPERTS)
    for ranks in (1, 2, 4):
        runs = runs_of(ranks, moe)
        metrics = train_all(home / str(ranks), [[*base, *STEPS, *overrides] for overrides in runs.values()], ranks)
        found |= {(ranks, name): lines for name, lines in zip(runs, metrics, strict=True)}
    return found


@pytest.fixture(scope="module")
def reference(found):
    return curve(found[1, "reference"])


def test_layouts_micro_batches_and_ranks_agree(found, reference):
    assert len(reference) == 8
    runs = {key: lines for key, lines in found.items() if isinstance(key[1], tuple) and len(key[1]) == 3}
    assert len(runs) == 20
    for key, metrics in runs.items():
        assert curve(metrics) == pytest.approx(reference, rel=1e-5), key
        # Of equal weights, before Adam makes much of small differences: the sum of squares is exact.
        assert curve(metrics)[:2] == pytest.approx(reference[:2], rel=1e-6), key


def test_token_budgets_and_balancing_agree(found, reference):
    for ranks in (1, 2):
        validation = []
        for layout in LAYOUTS:
            for policy in BUDGETS:
                metrics = found[ranks, (layout, policy)]
                assert curve(metrics) == pytest.approx(reference, rel=1e-5), (ranks, layout, policy)
                validation.append(metrics[-1]["val/loss"])
        assert validation == pytest.approx([validation[0]] * 4, rel=1e-5)


def test_other_losses_agree_over_micro_batches_layouts_ranks_and_sequence_parallelism(found):
    """Validation stays cross entropy: before anything is trained, it is that of the plain run."""
    one, plain = found[1, "other loss"], found[1, "before training"]
    for name in ("padded", "packed", "shared"):
        assert curve(found[2, f"other loss, {name}"][1:]) == pytest.approx(curve(one[1:]), rel=1e-5), name
    assert one[0]["val/loss"] == pytest.approx(plain[0]["val/loss"], rel=1e-6)
    assert one[1]["train/loss"] != pytest.approx(plain[1]["train/loss"], rel=1e-3)


def test_the_load_balancing_loss_of_experts_agrees_over_every_split(found):
    one, without = found[1, "experts"], found[1, "experts without"]
    splits = [found[2, f"experts, {name}"] for name in ("padded", "packed", "shared", "checkpointed")]
    for metrics in (found[1, "experts, whole"], *splits):
        assert curve(metrics) == pytest.approx(curve(one), rel=2e-5)
        for key in ("train/router_aux_loss", "train/largest_expert_share"):
            assert [line[key] for line in metrics] == pytest.approx([line[key] for line in one], rel=1e-4)
    assert without[0]["train/loss"] == pytest.approx(one[0]["train/loss"], rel=1e-6)
    assert without[0]["train/grad_norm"] != pytest.approx(one[0]["train/grad_norm"], rel=1e-3)
    assert "train/router_aux_loss" not in without[0]


def test_validation_covers_every_sample_on_any_number_of_ranks(found):
    """7 validation rows do not go around 2 or 4 ranks; loss, perplexity and accuracy still agree."""

    def validation(ranks, rows):
        (line,) = found[ranks, ("validation", rows)]
        return {key: value for key, value in line.items() if key.startswith("val/")}

    for ranks in (1, 2, 4):
        for rows in (1, 7):
            assert validation(ranks, rows) == pytest.approx(validation(1, rows), rel=1e-5), (ranks, rows)
    assert set(validation(1, 7)) == {"val/loss", "val/perplexity", "val/token_accuracy"}
    assert validation(1, 1) != validation(1, 7)


def losses(metrics):
    return [line["train/loss"] for line in metrics]


def test_bf16_compute_stays_close_to_fp32(found, reference):
    """fp32 master weights and reduction; bf16 has 8 bits of mantissa, 3 % is what 4 steps at lr 1e-2 may differ."""
    assert losses(found[2, "bf16"]) == pytest.approx(reference[::2], rel=0.03)
    assert losses(found[2, "bf16"]) != pytest.approx(reference[::2], rel=1e-6)


def test_bf16_master_weights_stay_close_on_any_number_of_ranks(found, reference):
    """Weights and moments in 8 bits of mantissa: an update below 1/256 of its weight is lost, so 5 % after 4 steps."""
    assert losses(found[1, "bf16 weights"]) == pytest.approx(reference[::2], rel=0.05)
    assert losses(found[2, "bf16 weights"]) == pytest.approx(losses(found[1, "bf16 weights"]), rel=0.01)


def test_same_seed_same_bits_another_seed_another_order(found):
    assert curve(found[2, "first"]) == curve(found[2, "again"])
    assert curve(found[2, "first"]) != curve(found[2, "other seed"])


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: .item(), float(tensor), and copies to the CPU alike."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


@pytest.fixture
def job(base, tmp_path):
    """A run of one rank in this process, before its first step."""
    options = ["data.micro_batch_size_per_gpu=1", *LAYOUTS["packed"], f"trainer.default_local_dir={tmp_path / 'run'}"]
    config, world = load_config([*base, *STEPS, *options]), World.from_environment()
    inputs = trainer.read_inputs(config, world)
    with process_group(world):
        yield trainer.build(config, world, inputs)


def test_a_step_asks_the_other_ranks_once_and_never_waits_for_the_device_between_micro_batches(job, monkeypatch):
    calls = []
    all_reduce = dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda *a, **k: (calls.append(1), all_reduce(*a, **k))[1])
    micro_batches, weight_sums = next(trainer.parts_from(job, 1))
    assert len(micro_batches) == 4
    with HostReads() as reads:
        trainer.train_step(job, micro_batches, weight_sums)
    assert len(calls) == 1
    assert reads.count == 0  # the sums of the step come over in one piece, by tolist()


def test_the_update_is_under_way_before_the_host_reads_a_number(job, monkeypatch):
    """On a GPU the host would otherwise wait for the gradients, and the GPU then for the host."""
    events, read, step = [], torch.Tensor.tolist, job.optimizer.step
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (events.append("read"), read(self))[1])
    monkeypatch.setattr(job.optimizer, "step", lambda: (events.append("update"), step())[1])
    trainer.train_step(job, *next(trainer.parts_from(job, 1)))
    assert events == ["update", "read"]


def test_a_run_asks_the_other_ranks_once_per_step(job, monkeypatch):
    """Losses, norm, counts, and what people asked of the run: one sum."""
    sums, at_step = [], []
    all_reduce, train_step = dist.all_reduce, trainer.train_step
    monkeypatch.setattr(dist, "all_reduce", lambda *a, **k: (sums.append(1), all_reduce(*a, **k))[1])
    monkeypatch.setattr(trainer, "train_step", lambda *a, **k: (at_step.append(len(sums)), train_step(*a, **k))[1])
    trainer.fit(job)
    assert [later - before for before, later in pairwise(at_step)] == [1, 1, 1]


def test_the_weights_of_a_step_are_known_before_it_is_computed(job):
    """Whoever computes it: a rank divides by what it reads in the files, not by what it is told."""
    micro_batches, weight_sums = next(trainer.parts_from(job, 1))
    assert sum(weight_sums) == sum(batch.counts.weight_sum for batch in micro_batches) > 0
    with pytest.raises(InputError, match="the ranks read different data"):
        trainer.train_step(job, micro_batches[1:], weight_sums)
