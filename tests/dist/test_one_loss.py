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

STEPS = ["trainer.total_training_steps=4"]  # the third step is the smaller one that ends the epoch
LAYOUTS = {"packed": ["use_remove_padding=true"], "padded": ["use_remove_padding=false"]}


def curve(metrics):
    """Losses and gradient norms; from the second step on, a loss depends on every gradient before it."""
    return [value for line in metrics for value in (line["train/loss"], line["train/grad_norm"])]


@pytest.fixture
def reference(base, run_all):
    return curve(run_all([[*base, *STEPS, "data.micro_batch_size_per_gpu=1"]], 1)[0])


def test_layouts_micro_batches_and_ranks_agree(base, run_all, reference):
    def variants(micro_batch_sizes):
        return {
            (layout, size, checkpointing): [
                *base,
                *STEPS,
                *overrides,
                f"data.micro_batch_size_per_gpu={size}",
                f"model.enable_gradient_checkpointing={checkpointing}",
            ]
            for layout, overrides in LAYOUTS.items()
            for size in micro_batch_sizes
            for checkpointing in ("false", "true")
        }

    assert len(reference) == 8
    for ranks, sizes in ((1, (2, 4)), (2, (1, 2)), (4, (1,))):
        runs = variants(sizes)
        for name, metrics in zip(runs, run_all(list(runs.values()), ranks), strict=True):
            assert curve(metrics) == pytest.approx(reference, rel=1e-5), (ranks, name)
            # Of equal weights, before Adam makes much of small differences: the sum of squares is exact.
            assert curve(metrics)[:2] == pytest.approx(reference[:2], rel=1e-6), (ranks, name)


def test_token_budgets_and_balancing_agree(base, run_all, reference):
    """A budget of the longest sample, so that the four samples of a step need several micro-batches."""
    budget = ["data.max_length=80", "data.max_tokens_per_gpu=80"]
    policies = {"budget": budget, "balanced": ["data.balance_dp_token=true", "data.micro_batch_size_per_gpu=1"]}
    for ranks in (1, 2):
        runs = {
            (layout, policy): [*base, *STEPS, *overrides, *options, "trainer.test_freq=4"]
            for layout, overrides in LAYOUTS.items()
            for policy, options in policies.items()
        }
        validation = []
        for (layout, policy), metrics in zip(runs, run_all(list(runs.values()), ranks), strict=True):
            assert curve(metrics) == pytest.approx(reference, rel=1e-5), (ranks, layout, policy)
            validation.append(metrics[-1]["val/loss"])
        assert validation == pytest.approx([validation[0]] * 4, rel=1e-5)


def test_other_losses_agree_over_micro_batches_layouts_ranks_and_sequence_parallelism(base, run_all):
    """Validation stays cross entropy: before anything is trained, it is that of the plain run."""
    run = [*base, *STEPS, "trainer.test_freq=4", "trainer.val_before_train=true", "optim.loss=eaft"]
    run += ["optim.label_smoothing=0.1", "optim.z_loss=1e-3", "model.neftune_alpha=1"]
    one_rank = [*run, "data.micro_batch_size_per_gpu=1"]
    (one, plain) = run_all([one_rank, [*base, *STEPS, "trainer.val_before_train=true"]], 1)
    padded, packed, shared = run_all(
        [
            [*run, *LAYOUTS["padded"]],
            [*run, *LAYOUTS["packed"]],
            [*one_rank, *LAYOUTS["packed"], "ulysses_sequence_parallel_size=2"],
        ],
        2,
    )
    for name, metrics in (("padded", padded), ("packed", packed), ("sp", shared)):
        assert curve(metrics[1:]) == pytest.approx(curve(one[1:]), rel=1e-5), name
    assert one[0]["val/loss"] == pytest.approx(plain[0]["val/loss"], rel=1e-6)
    assert one[1]["train/loss"] != pytest.approx(plain[1]["train/loss"], rel=1e-3)


def test_the_load_balancing_loss_of_experts_agrees_over_every_split(base, run_all, tmp_path):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "initializer_range": 0.1}
    tiny_model_dir(tmp_path / "moe", kind="qwen3_moe", router_aux_loss_coef=3.0, output_router_logits=True, **experts)
    run = [*base, *STEPS, f"model.partial_pretrain={tmp_path / 'moe'}", "optim.lr=1e-3"]
    one_by_one = "data.micro_batch_size_per_gpu=1"
    one, whole, without = run_all(
        [[*run, one_by_one], [*run, "data.micro_batch_size_per_gpu=4"], [*run, "model.router_aux_loss=0"]], 1
    )
    shared = [*LAYOUTS["packed"], "ulysses_sequence_parallel_size=2"]
    runs = [[*run, *LAYOUTS["padded"]], [*run, *LAYOUTS["packed"], one_by_one], [*run, *shared]]
    checkpointed = [*run, "model.enable_gradient_checkpointing=true"]
    for metrics in (whole, *run_all([*runs, checkpointed], 2)):
        assert curve(metrics) == pytest.approx(curve(one), rel=2e-5)
        for key in ("train/router_aux_loss", "train/largest_expert_share"):
            assert [line[key] for line in metrics] == pytest.approx([line[key] for line in one], rel=1e-4)
    assert without[0]["train/loss"] == pytest.approx(one[0]["train/loss"], rel=1e-6)
    assert without[0]["train/grad_norm"] != pytest.approx(one[0]["train/grad_norm"], rel=1e-3)
    assert "train/router_aux_loss" not in without[0]


def test_validation_covers_every_sample_on_any_number_of_ranks(base, run_all):
    """7 validation rows do not go around 2 or 4 ranks; loss, perplexity and accuracy still agree."""
    run = [*base, "trainer.total_training_steps=1", "trainer.test_freq=1", "data.micro_batch_size_per_gpu=1"]
    found = {}
    for ranks in (1, 2, 4):
        one_row, seven_rows = run_all([[*run, f"data.val_max_samples={rows}"] for rows in (1, 7)], ranks)
        for rows, metrics in ((1, one_row), (7, seven_rows)):
            found[ranks, rows] = {key: value for key, value in metrics[0].items() if key.startswith("val/")}
    for (ranks, rows), values in found.items():
        assert values == pytest.approx(found[1, rows], rel=1e-5), (ranks, rows)
    assert set(found[1, 7]) == {"val/loss", "val/perplexity", "val/token_accuracy"}
    assert found[1, 1] != found[1, 7]


def test_bf16_compute_stays_close_to_fp32(base, run_all, reference):
    """fp32 master weights and reduction; bf16 has 8 bits of mantissa, 3 % is what 4 steps at lr 1e-2 may differ."""
    (metrics,) = run_all([[*base, *STEPS, "model.fsdp_config.compute_dtype=bf16", *LAYOUTS["packed"]]], 2)
    losses = [line["train/loss"] for line in metrics]
    assert losses == pytest.approx(reference[::2], rel=0.03)
    assert losses != pytest.approx(reference[::2], rel=1e-6)


def test_bf16_master_weights_stay_close_on_any_number_of_ranks(base, run_all, reference):
    """Weights and moments in 8 bits of mantissa: an update below 1/256 of its weight is lost, so 5 % after 4 steps."""
    run = [*base, *STEPS, "model.fsdp_config.model_dtype=bf16", "model.fsdp_config.compute_dtype=bf16"]
    one, two = ([line["train/loss"] for line in run_all([run], ranks)[0]] for ranks in (1, 2))
    assert one == pytest.approx(reference[::2], rel=0.05)
    assert two == pytest.approx(one, rel=0.01)


def test_same_seed_same_bits_another_seed_another_order(base, run_all):
    first, again, other = run_all([[*base, *STEPS], [*base, *STEPS], [*base, *STEPS, "trainer.seed=2"]], 2)
    assert curve(first) == curve(again)
    assert curve(first) != curve(other)


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
