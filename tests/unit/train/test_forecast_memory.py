"""What a person is told about memory: before the model is built, and when there was not enough."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sft.data.order.mixture import Mixture, Source
from sft.data.order.plan import Plan
from sft.errors import InputError
from sft.model.kept import Kept
from sft.model.memory import Load, ModelSize, device_bytes, estimate
from sft.parallel.lost_ranks import is_out_of_memory
from sft.train.forecast_memory import (
    Footprint,
    OutOfMemory,
    explaining_memory,
    footprint,
    steps_to_look_at,
)
from sft.train.optim import OPTIMIZERS

MODEL = ModelSize(
    trainable=10**9, frozen=0, layer=3 * 10**7, first=10**8, at_loss=10**8, layers=30, width=2048, vocabulary=150_000,
    kept=Kept(layers=30 * 100_000, layer=100_000, results=30 * 50_000),
    layer_trains=3 * 10**7, last_trains=10**8,
)  # fmt: skip
PLAN = Footprint(
    MODEL,
    Load(
        ranks=1,
        tokens=4096,
        logits=1000,
        master_bytes=4,
        compute_bytes=2,
        optimizer_bytes=OPTIMIZERS["adamw"].state_bytes,
    ),
    ranks=1,
)


def test_one_line_where_it_fits_and_the_knobs_where_it_may_not():
    needed = estimate(MODEL, PLAN.load).total
    roomy, tight = (replace(PLAN, device_bytes=int(needed * factor)) for factor in (1.3, 1.1))
    assert roomy.fits() and not tight.fits()
    assert "would save" not in roomy.line()
    assert "This may not fit. would save: model.fsdp_config.cpu_offload=true" in tight.line()
    assert "\n" not in tight.line()


def test_on_a_cpu_python_and_its_libraries_take_of_the_same_memory():
    needed = estimate(MODEL, PLAN.load).total
    plan = replace(PLAN, device="cpu", device_bytes=int((needed + 10**9) / 0.8) + 1, process_bytes=10**9)
    assert plan.fits() and not replace(plan, process_bytes=10**9 + 2).fits()
    assert "; 1.0 GB for Python and its libraries; a rank has" in plan.line()
    assert "; 1.0 GB for Python and its libraries" in plan.table()
    assert "libraries" not in PLAN.line() + PLAN.table()


def test_on_the_cpu_nothing_is_offloaded():
    assert "cpu_offload" in PLAN.table()
    assert "cpu_offload" not in replace(PLAN, device="cpu").table()


@pytest.mark.parametrize(
    ("device", "async_save", "save_freq", "counts"),
    [("cpu", True, 10, True), ("cpu", False, 10, False), ("cpu", True, -1, False), ("cuda", True, 10, False)],
)
def test_the_copy_for_checkpoints_counts_where_it_lies_in_the_memory_that_trains(
    monkeypatch, device, async_save, save_freq, counts
):
    trainer = SimpleNamespace(async_save=async_save, save_freq=save_freq)
    config = stand_in(monkeypatch, trainer=trainer)
    assert footprint(config, None, None, 1, device=device).load.snapshot == counts


def stand_in(monkeypatch, *, reduce_gradients="auto", offload=False, micro_batches=1, trainer=None):
    """A configuration, and what looking ahead would find, of MODEL."""
    fsdp = SimpleNamespace(
        reduce_gradients=reduce_gradients, model_dtype="fp32", compute_dtype="bf16", cpu_offload=offload,
        offload_params=False, dp_replicate=1, reshard_after_forward=True,
    )  # fmt: skip
    view = SimpleNamespace(most_positions=4096, most_logits=1000, sp_size=1, micro_batches=micro_batches)
    monkeypatch.setattr("sft.train.forecast_memory.look_ahead", lambda *_: view)
    monkeypatch.setattr("sft.train.forecast_memory.size_of", lambda *_: MODEL)
    model = SimpleNamespace(
        fsdp_config=fsdp,
        gradient_checkpointing_kind="full",
        enable_gradient_checkpointing=False,
        lora_rank=0,
        activation_offload=False,
        loss_kernel="auto",
    )
    return SimpleNamespace(model=model, trainer=trainer, optim=SimpleNamespace(name="adamw"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_every_allocator_is_understood(error):
    with pytest.raises(OutOfMemory) as caught, explaining_memory(PLAN, "step 7"):
        raise error
    assert isinstance(caught.value, InputError)
    assert str(caught.value).startswith("out of memory in step 7")
    assert "model.enable_gradient_checkpointing=true" in str(caught.value)


def test_a_real_allocation_of_the_cpu_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="a shape"), explaining_memory(PLAN, "step 7"):
        raise RuntimeError("a shape is wrong")


def test_ranks_of_a_node_share_its_memory(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    alone = device_bytes(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device_bytes(torch.device("cpu")) == alone // 4 > 10**8


@pytest.mark.parametrize(
    ("asked", "room", "offload", "micro_batches", "once"),
    [
        ("auto", 1.0, False, 4, True),
        ("auto", 0.5, False, 4, False),
        ("auto", 1.0, True, 4, False),
        ("once", 0.5, True, 4, True),
        ("once", 1.0, False, 1, True),  # the first step has one micro-batch; later ones may have more
        ("every_micro_batch", 1.0, False, 4, False),
    ],
)
def test_when_gradients_are_summed(monkeypatch, asked, room, offload, micro_batches, once):
    config = stand_in(monkeypatch, reduce_gradients=asked, offload=offload, micro_batches=micro_batches)
    whole = estimate(MODEL, replace(PLAN.load, several_micro_batches=True, whole_gradients=True, offload=offload)).total
    found = footprint(config, None, None, 1, device="cuda", device_bytes=int(whole * room / 0.79))
    assert found.reduce_once == once
    assert found.load.whole_gradients == (once and micro_batches > 1)


def test_a_curriculum_is_judged_by_its_hard_end_as_well():
    plan = Plan(Mixture((Source("rows", 1000),)), batch_size=10, seed=1, total_steps=100)
    assert steps_to_look_at(plan, curriculum=False) == [*range(1, 9)]
    assert steps_to_look_at(plan, curriculum=True) == [*range(1, 9), *range(93, 101)]
    few = replace(plan, batch_size=100)
    assert steps_to_look_at(few, curriculum=True) == [*range(1, 11)]
