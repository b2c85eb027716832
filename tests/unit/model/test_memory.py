"""The estimate of memory against what autograd really keeps, and what its knobs must do."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from sft.model.attention import Available, choose_attention
from sft.model.head import linear_ce_sum
from sft.model.kept import Kept, kept_for_backward
from sft.model.load import build_skeleton
from sft.model.loss_form import LogitForm
from sft.model.memory import Load, Memory, ModelSize, estimate, gigabytes, model_size, moments, savings
from sft.model.pretrained import load_config
from sft.train.optim import OPTIMIZERS
from tests.assets import tiny_model_dir
from tests.optimizers import optim

LOAD = Load(
    ranks=1,
    tokens=512,
    logits=100,
    master_bytes=4,
    compute_bytes=2,
    optimizer_bytes=OPTIMIZERS["adamw"].state_bytes,
)
BILLION = ModelSize(
    trainable=10**9, frozen=0, layer=3 * 10**7, first=10**8, at_loss=10**8, layers=30, width=2048, vocabulary=150_000,
    kept=Kept(layers=30 * 100_000, layer=100_000, results=30 * 50_000),
    layer_trains=3 * 10**7, last_trains=10**8,
)  # fmt: skip


def when(moment: str, model: ModelSize, load: Load) -> Memory:
    (memory,) = [memory for memory in moments(model, load) if memory.moment == moment]
    return memory


FORWARD, LOSS, BACKWARD, LAST_LAYER, END = (memory.moment for memory in moments(BILLION, LOAD))


def test_sizes_of_a_model(tmp_path):
    tiny_model_dir(tmp_path)
    config = load_config(tmp_path, trust_remote_code=False)
    attention = choose_attention(config, wanted="auto", packed=True, half=True, here=Available("cpu"))
    model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
    size = model_size(model, list(model.model.layers))
    everything = sum(weight.numel() for weight in model.parameters())
    assert size.trainable == everything and size.frozen == 0
    assert size.layers * size.layer + size.first == everything and size.first == size.at_loss
    assert size.width == 64 and size.layer_trains == size.layer and size.last_trains == size.first
    assert size.kept == kept_for_backward(model, list(model.model.layers), torch.bfloat16)
    assert size.vocabulary == model.get_input_embeddings().weight.shape[0]


def test_states_are_shared_out_and_have_their_dtype():
    one, eight = when(END, BILLION, LOAD), when(END, BILLION, replace(LOAD, ranks=8))
    being_summed = (2 + 4) * 10**8
    assert (one.weights, one.gradients, one.optimizer) == (4 * 10**9, 4 * 10**9 + being_summed, 8 * 10**9)
    assert (eight.weights, eight.gradients, eight.optimizer) == (5 * 10**8, 5 * 10**8 + being_summed, 10**9)
    assert when(LOSS, BILLION, replace(LOAD, ranks=8)).activations == when(LOSS, BILLION, LOAD).activations
    assert estimate(BILLION, replace(LOAD, master_bytes=2)).optimizer == 4 * 10**9


def test_what_the_optimizer_remembers_is_its_own_say():
    """In state and in the copy that a checkpoint is written from, also where its bytes do not follow the weights'."""
    load = replace(LOAD, optimizer_bytes=lambda master_bytes: 2.25, snapshot=True)
    for m in (4, 2):
        memory = estimate(BILLION, replace(load, master_bytes=m))
        assert memory.optimizer == 2_250_000_000 and memory.snapshot == m * 10**9 + 2_250_000_000


def test_frozen_weights_have_neither_gradients_nor_moments():
    size = replace(BILLION, trainable=10**7, frozen=10**9, layer_trains=10**6, last_trains=0)
    memory = when(END, size, LOAD)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * 10**7 + 2 * 10**9, 4 * 10**7, 8 * 10**7)
    assert when(LAST_LAYER, replace(size, head_trains=False), LOAD).gradients == 4 * 10**7 + (2 + 4) * 10**6


def test_a_step_is_fullest_at_one_moment():
    assert estimate(BILLION, LOAD).total == max(memory.total for memory in moments(BILLION, LOAD))
    assert estimate(BILLION, replace(LOAD, tokens=10**6, checkpointing="full")).moment == BACKWARD
    assert estimate(replace(BILLION, vocabulary=1000, layer_trains=10**6), replace(LOAD, tokens=1)).moment == END
    large_vocabulary = replace(BILLION, vocabulary=10**6)
    assert estimate(large_vocabulary, replace(LOAD, ranks=64)).moment == LOSS
    frozen = replace(BILLION, trainable=1, frozen=10**9, layer_trains=0, last_trains=0, head_trains=False)
    assert estimate(frozen, replace(LOAD, ranks=64, tokens=1, logits=1)).moment == FORWARD


def test_activations_are_there_from_the_loss_to_the_layer_that_uses_them():
    assert when(FORWARD, BILLION, LOAD).activations == when(END, BILLION, LOAD).activations == 0
    last_norm = 512 * 2048 * (4 + 2 * 2)
    assert when(LOSS, BILLION, LOAD).activations == 512 * 30 * 100_000 + last_norm
    assert when(BACKWARD, BILLION, LOAD).activations == 512 * 30 * 100_000
    assert when(LAST_LAYER, BILLION, LOAD).activations == 512 * 100_000


def test_checkpointing_keeps_the_input_of_each_layer_and_one_layer_in_backward():
    load, inputs = replace(LOAD, checkpointing="full"), 512 * 2 * 2048 * 30
    assert when(LOSS, BILLION, load).activations == inputs + 512 * 2048 * (4 + 2 * 2)
    assert when(BACKWARD, BILLION, load).activations == inputs + 512 * 100_000
    selective = replace(LOAD, checkpointing="selective")
    assert when(BACKWARD, BILLION, selective).activations == inputs + 512 * 100_000 + 512 * 30 * 50_000


def test_what_is_kept_whole_does_not_shrink_with_the_ranks():
    several = replace(LOAD, ranks=8, several_micro_batches=True)
    assert when(LOSS, BILLION, replace(LOAD, ranks=8)).gradients == 0
    assert when(LOSS, BILLION, several).gradients == 4 * 10**9 // 8
    assert when(LOSS, BILLION, replace(several, whole_gradients=True)).gradients == 4 * 10**9
    plain, whole = (when(BACKWARD, BILLION, replace(LOAD, ranks=8, whole_weights=kept)) for kept in (False, True))
    assert whole.gathered - plain.gathered == 2 * (10**9 - 10**8 - 3 * 10**7)


def test_a_head_of_its_own_is_summed_first_and_an_embedding_of_its_own_last():
    head = 150_000 * 2048
    size = replace(BILLION, first=head, at_loss=head, last_trains=head, head_apart=True)
    tied = replace(size, head_apart=False)
    load = replace(LOAD, ranks=8)
    assert when(LOSS, size, load).gathered == 2 * (head + head), "in place, and as it was sent"
    assert when(LOSS, tied, load).gathered == 2 * (head + 3 * 10**7)
    assert when(BACKWARD, size, load).gathered == 2 * 2 * 3 * 10**7
    assert when(BACKWARD, size, load).gradients == 4 * head + 2 * 3 * 10**7
    assert when(LAST_LAYER, tied, load).gradients - when(LAST_LAYER, size, load).gradients == 2 * head
    assert when(END, size, load).gradients == 4 * 10**9 // 8 + (2 + 4) * head


def test_what_is_offloaded_leaves_the_device_but_for_what_computes():
    memory, plain = (when(END, BILLION, replace(LOAD, offload=offload)) for offload in (True, False))
    assert (memory.weights, memory.optimizer) == (0, 0)
    assert memory.gradients == plain.gradients - 4 * 10**9
    assert when(BACKWARD, BILLION, replace(LOAD, offload=True)).gathered == when(BACKWARD, BILLION, LOAD).gathered


def test_a_copy_for_checkpoints_is_of_what_trains():
    size = replace(BILLION, trainable=10**7, frozen=10**9)
    assert estimate(size, LOAD).snapshot == 0 and "snapshot" not in str(estimate(size, LOAD))
    kept = replace(LOAD, ranks=2, snapshot=True)
    assert estimate(size, kept).snapshot == (4 + 8) * 10**7 // 2
    assert savings(size, kept)["trainer.async_save=false"] == (4 + 8) * 10**7 // 2


def test_logits_exist_for_a_chunk_of_trained_positions():
    head = 2048 * (150_000 * 4 + 8192 * 2)  # the gradient of its weight: a few rows in bf16, added in fp32
    assert when(LOSS, BILLION, LOAD).logits == 150_000 * 100 * (2 + 4) + 2 * 2048 * 100 + head
    assert when(LOSS, BILLION, replace(LOAD, logits=0)).logits == 0
    more = when(LOSS, BILLION, replace(LOAD, logits=5000)).logits
    assert more == 150_000 * 2048 * (2 + 4) + 2 * 2048 * 5000 + head
    frozen = when(LOSS, replace(BILLION, head_trains=False), replace(LOAD, logits=5000)).logits
    assert frozen == more - head
    whole = when(LOSS, replace(BILLION, fused_loss=False), replace(LOAD, logits=5000)).logits
    assert whole == 150_000 * (2 * 2 * 5000 + 3 * 4 * 1024), "fp32 exists for a chunk only"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_what_the_fused_loss_allocates(dtype):
    """The most that is alive at one time, on the CPU's chunk: never more than estimated, and not much less."""
    rows, width, vocabulary = 600, 64, 3000
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype, requires_grad=True)
    with Alive() as alive:
        labels = torch.arange(rows)
        linear_ce_sum(hidden, weight, None, labels, torch.ones(rows), LogitForm())[0].backward()
    size = replace(BILLION, width=width, vocabulary=vocabulary)
    estimated = when(LOSS, size, replace(LOAD, logits=rows, compute_bytes=dtype.itemsize, on_cpu=True)).logits
    assert 0.8 < estimated / alive.most < 1.25


class Alive(TorchDispatchMode):
    """The most bytes of tensors made here that were alive at one time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def free(self, storage, size):
        self.seen.discard(storage)
        self.now -= size


def test_knobs_that_save_are_named_the_most_first():
    saved = savings(BILLION, replace(LOAD, tokens=16_384))
    assert list(saved.values()) == sorted(saved.values(), reverse=True)
    assert "model.enable_gradient_checkpointing=true" in saved
    turned = savings(BILLION, replace(LOAD, checkpointing="full", master_bytes=2))
    assert not {"model.enable_gradient_checkpointing=true", "model.fsdp_config.model_dtype=bf16"} & set(turned)
    everything = {"whole_weights": True, "several_micro_batches": True, "whole_gradients": True}
    kept = savings(BILLION, replace(LOAD, ranks=8, tokens=16_384, checkpointing="selective", **everything))
    for knob in ("reshard_after_forward=true", "reduce_gradients=every_micro_batch", "cpu_offload=true"):
        assert f"model.fsdp_config.{knob}" in kept
    assert "model.gradient_checkpointing_kind=full" in kept
    assert not any("offload" in knob for knob in savings(BILLION, LOAD, can_offload=False))


def test_units():
    assert gigabytes(1_250_000_000) == "1.2 GB" and gigabytes(12_300_000) == "12.3 MB"
    memory = estimate(BILLION, LOAD)
    assert str(memory).startswith(
        f"{gigabytes(memory.total)} per rank, when {memory.moment}: weights 4.0 GB, optimizer "
    )


def test_a_packed_base_and_activations_on_the_host_weigh_less():
    frozen = replace(BILLION, trainable=10**7, frozen=10**9, layer_trains=10**5, last_trains=0)
    sizes = {"packed": 9 * 10**8, "packed_layer": 29 * 10**6, "largest_packed": 2048 * 8192}
    for plain, packed in zip(moments(frozen, LOAD), moments(replace(frozen, **sizes), LOAD), strict=True):
        assert plain.weights - packed.weights == pytest.approx(9 * 10**8 * (2 - 9 / 16))
        assert packed.optimizer == plain.optimizer
        assert packed.gathered <= plain.gathered
    for layout in ({}, {"checkpointing": "full"}, {"checkpointing": "selective"}):
        load = replace(LOAD, tokens=100_000, **layout)
        on_host = replace(load, activations_on_host=True)
        assert estimate(BILLION, on_host).activations < estimate(BILLION, load).activations
    assert "model.activation_offload=true" in savings(BILLION, load)
    assert "model.activation_offload=true" not in savings(BILLION, load, can_offload=False)


def test_an_optimizer_may_remember_more_of_embeddings(tmp_path):
    """Of a tied model, half of which are embeddings, against what AdamW of 8 bits really remembers."""
    pytest.importorskip("bitsandbytes")
    source = tiny_model_dir(tmp_path, hidden_size=256, intermediate_size=256, head_dim=64)
    model = AutoModelForCausalLM.from_pretrained(source)
    chosen = OPTIMIZERS["adamw_8bit"]
    optimizer = chosen.build(model, optim(name="adamw_8bit"))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values()]
    kept = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
    load = replace(LOAD, optimizer_bytes=chosen.state_bytes, embedding_bytes=chosen.bytes_in_embeddings)
    size = model_size(model, list(model.model.layers))
    assert estimate(size, load).optimizer == pytest.approx(kept, rel=0.05)
    assert estimate(size, replace(load, embedding_bytes=None)).optimizer < 0.8 * kept
