"""A file that grows tensor by tensor is read by safetensors as if it had been written at once."""

import pytest
import torch
from safetensors.torch import load_file

from sft.model.write.growing_file import GrowingFile

TENSORS = {
    "flag": torch.tensor([True, False, True]),
    "half": torch.randn(3, 5).bfloat16(),
    "none": torch.empty(0, 4),
    "word": torch.randn(2, 3),
    "count": torch.tensor(7),
    "turned": torch.randn(4, 2).T,
}


def about(tensors):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def test_what_is_read_is_what_was_written_whatever_the_order(tmp_path):
    file = GrowingFile(tmp_path / "model.safetensors", about(TENSORS))
    for name in reversed(TENSORS):
        file.append(lambda name=name: {name: TENSORS[name]})
    file.close()
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_an_error_waits_for_the_end_and_leaves_no_file(tmp_path):
    file, made = GrowingFile(tmp_path / "model.safetensors", about(TENSORS)), []
    file.append(lambda: {"flag": TENSORS["flag"]})
    file.append(lambda: 1 / 0)
    file.append(lambda: made.append(1) or {})
    with pytest.raises(ZeroDivisionError):
        file.close()
    assert not made and not list(tmp_path.iterdir())


def test_a_tensor_of_another_shape_than_planned_is_a_bug(tmp_path):
    file = GrowingFile(tmp_path / "model.safetensors", about(TENSORS))
    file.append(lambda: {"word": torch.zeros(3, 2)})
    with pytest.raises(AssertionError, match="word is"):
        file.close()
