"""The estimate of memory against what autograd really keeps, and what its knobs must do."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from sft.model.head import LogitForm, linear_ce_sum
from sft.model.memory import Load, ModelSize, estimate, gigabytes, model_size, savings
from sft.train.optim import OPTIMIZERS
from tests.assets import tiny_model_dir

LOAD = Load(
    ranks=1,
    tokens=512,
    logits=100,
    master_bytes=4,
    compute_bytes=2,
    optimizer_bytes=OPTIMIZERS["adamw"].state_bytes,
)
BILLION = ModelSize(
    trainable=10**9, frozen=0, layer=3 * 10**7, outside=10**8, layers=30, width=2048, query_width=2048,
    key_width=512, mlp_width=8192, vocabulary=150_000,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_activations_are_what_autograd_keeps(kind, dtype, tmp_path):
    """Every tensor that the layers save for backward, weights excepted, by storage: within 5 % below, 25 % above."""
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "head_dim": 32}
    tiny_model_dir(tmp_path, kind=kind, num_hidden_layers=4, **sizes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, attn_implementation="sdpa").train()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor  # kept alive: no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model(input_ids=torch.arange(LOAD.tokens)[None] % 400, use_cache=False)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    load = replace(LOAD, compute_bytes=dtype.itemsize)
    estimated = estimate(model_size(model, list(model.model.layers)), load).activations
    assert 0.95 < estimated / measured < 1.25


def test_sizes_of_a_model(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir(tmp_path))
    size = model_size(model, list(model.model.layers))
    everything = sum(weight.numel() for weight in model.parameters())
    assert size.trainable == everything and size.frozen == 0
    assert size.layers * size.layer + size.outside == everything
    assert (size.width, size.query_width, size.key_width, size.mlp_width) == (64, 64, 32, 128)
    assert size.vocabulary == model.get_input_embeddings().weight.shape[0]


def test_states_are_shared_out_and_have_their_dtype():
    one, eight = estimate(BILLION, LOAD), estimate(BILLION, replace(LOAD, ranks=8))
    assert (one.weights, one.gradients, one.optimizer) == (4 * 10**9, 4 * 10**9, 8 * 10**9)
    assert (eight.weights, eight.gradients, eight.optimizer) == (5 * 10**8, 5 * 10**8, 10**9)
    assert eight.activations == one.activations
    assert estimate(BILLION, replace(LOAD, master_bytes=2)).optimizer == 4 * 10**9


def test_what_the_optimizer_remembers_is_its_own_say():
    """In state and in the copy that a checkpoint is written from, also where its bytes do not follow the weights'."""
    load = replace(LOAD, optimizer_bytes=lambda master_bytes: 2.25, snapshot=True)
    for m in (4, 2):
        memory = estimate(BILLION, replace(load, master_bytes=m))
        assert memory.optimizer == 2_250_000_000 and memory.snapshot == m * 10**9 + 2_250_000_000


def test_frozen_weights_have_neither_gradients_nor_moments():
    size = replace(BILLION, trainable=10**7, frozen=10**9)
    memory = estimate(size, LOAD)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * 10**7 + 2 * 10**9, 4 * 10**7, 8 * 10**7)
    assert memory.gathered < estimate(BILLION, LOAD).gathered


def test_checkpointing_keeps_one_layer_and_the_input_of_each():
    memory = estimate(BILLION, replace(LOAD, checkpointing="full"))
    in_layer = estimate(BILLION, LOAD).activations // BILLION.layers
    assert memory.activations == in_layer + LOAD.tokens * 2 * 2048 * BILLION.layers


def test_selective_checkpointing_lies_between():
    full, selective, none = (
        estimate(BILLION, replace(LOAD, checkpointing=kind)).activations for kind in ("full", "selective", None)
    )
    assert full < selective < none
    results = 2 * (2 * 2048 + 2 * 2048 + 2 * 512 + 2 * 8192)  # of matmuls and attention, per token and layer
    assert selective - full == LOAD.tokens * results * BILLION.layers


def test_what_is_kept_whole_does_not_shrink_with_the_ranks():
    eight = replace(LOAD, ranks=8)
    plain = estimate(BILLION, eight)
    assert estimate(BILLION, replace(eight, whole_gradients=True)).gradients == 4 * 10**9 > plain.gradients
    whole = estimate(BILLION, replace(eight, whole_weights=True))
    assert whole.gathered - plain.gathered == 2 * (10**9 - 10**8 - 2 * 3 * 10**7)


def test_what_is_offloaded_leaves_the_device_but_for_what_computes():
    memory = estimate(BILLION, replace(LOAD, offload=True))
    assert (memory.weights, memory.gradients, memory.optimizer) == (0, 0, 0)
    assert memory.gathered == estimate(BILLION, LOAD).gathered


def test_a_copy_for_checkpoints_is_of_what_trains():
    size = replace(BILLION, trainable=10**7, frozen=10**9)
    assert estimate(size, LOAD).snapshot == 0 and "snapshot" not in str(estimate(size, LOAD))
    kept = replace(LOAD, ranks=2, snapshot=True)
    assert estimate(size, kept).snapshot == (4 + 8) * 10**7 // 2
    assert savings(size, kept)["trainer.async_save=false"] == (4 + 8) * 10**7 // 2


def test_logits_exist_for_a_chunk_of_trained_positions():
    head = 150_000 * 2048 * (4 + 2)  # the gradient of its weight: summed in fp32, used in bf16
    assert estimate(BILLION, LOAD).logits == 150_000 * 100 * (2 + 4) + 2 * 2048 * 100 + head
    assert estimate(BILLION, replace(LOAD, logits=0)).logits == 0
    more = estimate(BILLION, replace(LOAD, logits=5000)).logits
    assert more == 150_000 * 2048 * (2 + 4) + 2 * 2048 * 5000 + head
    frozen = estimate(replace(BILLION, head_trains=False), replace(LOAD, logits=5000)).logits
    assert frozen == more - head
    whole = estimate(replace(BILLION, fused_loss=False), replace(LOAD, logits=5000)).logits
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
    estimated = estimate(size, replace(LOAD, logits=rows, compute_bytes=dtype.itemsize, on_cpu=True)).logits
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
    kept = savings(BILLION, replace(LOAD, ranks=8, whole_weights=True, whole_gradients=True, checkpointing="selective"))
    for knob in ("reshard_after_forward=true", "reduce_gradients=every_micro_batch", "cpu_offload=true"):
        assert f"model.fsdp_config.{knob}" in kept
    assert "model.gradient_checkpointing_kind=full" in kept
    assert not any("offload" in knob for knob in savings(BILLION, LOAD, can_offload=False))


def test_units():
    assert gigabytes(1_250_000_000) == "1.2 GB" and gigabytes(12_300_000) == "12.3 MB"
    memory = estimate(BILLION, LOAD)
    assert str(memory).startswith(f"{gigabytes(memory.total)} per rank: weights 4.0 GB, gradients 4.0 GB")
