"""Weights that transformers renames and joins are streamed: nobody ever holds a second copy of the model."""

import gc
import weakref
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from sft.model.write.weights import write_weights
from sft.parallel.shards import StoredTensors, local_part
from tests.models import load_sharded

LAYERS = 8
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
}  # fmt: skip
LARGEST = 8 * 2 * 64 * 64 * 4
"""Bytes of the largest tensor that is made of others: gate and up of all experts of a layer."""


class Alive(TorchDispatchMode):
    """The bytes of all memory that tensors have had at one time, of those made inside."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in tree_iter(made):
            self.note(each)
        return made

    def note(self, tensor):
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta or type(tensor) is not torch.Tensor:
            return
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in self._known:
            return
        self._known.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address, size):
        self._known.discard(address)
        self.now -= size


@pytest.fixture
def alive(monkeypatch):
    """Tensors that come from a file are made without torch: they are noted where they are read."""
    alive = Alive()

    def noting(method):
        def noted(*args):
            tensor = method(*args)
            alive.note(tensor)
            return tensor

        return noted

    for name in ("read", "_piece"):
        monkeypatch.setattr(StoredTensors, name, noting(getattr(StoredTensors, name)))
    gc.collect()
    return alive


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen3MoeConfig(**SIZES), dtype=torch.float32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_loading_and_saving_hold_one_converted_tensor_beside_the_model(source, tmp_path, alive, world_of_one):
    """While it is made there are its parts, too, and what they are joined to on the way: less than three times it."""
    with alive:
        model = load_sharded(source)
    own = sum(weight.numel() * weight.itemsize for weight in model.parameters())
    assert own > 12 * LARGEST and own <= alive.now < own + LARGEST / 2
    assert alive.peak < own + 3 * LARGEST
    loaded, alive.peak = alive.now, alive.now
    with torch.no_grad(), alive:
        (tmp_path / "out").mkdir()
        write_weights(model, source, tmp_path / "out", write=True)  # pyright: ignore[reportArgumentType]
    assert alive.peak < loaded + 2 * LARGEST
    before, after = (load_file(directory / "model.safetensors") for directory in (source, tmp_path / "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_second_copy_would_be_seen(source, alive, world_of_one):
    model = load_sharded(source)
    with alive:
        copies = [local_part(weight).clone() for weight in model.parameters()]
    assert alive.peak >= sum(copy.nbytes for copy in copies) > 12 * LARGEST
