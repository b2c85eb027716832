"""What a person is told about memory: before the model is built, and when there was not enough."""

from dataclasses import replace

import pytest
import torch

from sft.errors import InputError
from sft.footprint import Footprint, OutOfMemory, explaining_memory, is_out_of_memory
from sft.memory import Load, ModelSize, device_bytes, estimate

MODEL = ModelSize(
    trainable=10**9, frozen=0, layer=3 * 10**7, outside=10**8, layers=30, width=2048, query_width=2048,
    key_width=512, mlp_width=8192, vocabulary=150_000,
)  # fmt: skip
PLAN = Footprint(MODEL, Load(ranks=1, tokens=4096, logits=1000, master_bytes=4, compute_bytes=2), ranks=1)


def test_one_line_where_it_fits_and_the_knobs_where_it_may_not():
    needed = estimate(MODEL, PLAN.load).total
    roomy, tight = (replace(PLAN, device_bytes=int(needed * factor)) for factor in (1.3, 1.1))
    assert roomy.fits() and not tight.fits()
    assert "would save" not in roomy.line()
    assert "This may not fit. would save: model.fsdp_config.cpu_offload=true" in tight.line()
    assert "\n" not in tight.line()


def test_on_the_cpu_nothing_is_offloaded():
    assert "cpu_offload" in PLAN.table()
    assert "cpu_offload" not in replace(PLAN, device="cpu").table()


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
