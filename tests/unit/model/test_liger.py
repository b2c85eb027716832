"""What is asked of liger, and what is said where it cannot help; tests/gpu runs its kernels."""

import logging
import sys
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from sft.errors import InputError
from sft.model import liger
from tests.models import SIZES

GPU = torch.device("cuda")


@pytest.fixture
def calls(monkeypatch):
    """A liger that knows llama and only notes what it is asked for."""
    asked = []

    def apply(rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, swiglu=True, model=None):
        asked.append((fused_linear_cross_entropy, cross_entropy, model))

    package = ModuleType("liger_kernel.transformers.monkey_patch")
    package.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply}
    for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch"):
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr(liger, "find_spec", lambda name: object())
    monkeypatch.setattr(liger, "version", lambda name: "0.8")
    return asked


def skeleton(kind=LlamaForCausalLM, config=LlamaConfig):
    with torch.device("meta"):
        return kind(config(**SIZES))


def test_all_but_the_loss_is_taken_from_liger(calls, caplog):
    model = skeleton()
    with caplog.at_level(logging.INFO, "sft"):
        liger.use_liger_kernels(model, GPU)
    assert calls == [(False, False, model)]
    assert "liger-kernel 0.8 computes RMS norms, rotary positions, gated MLPs" in caplog.text


def test_on_the_cpu_one_line_and_no_kernel(calls, caplog):
    with caplog.at_level(logging.INFO, "sft"):
        liger.use_liger_kernels(skeleton(), torch.device("cpu"))
    assert not calls
    assert caplog.messages == [
        "model.use_liger=true has no effect: its kernels run on GPUs, and this run is on the CPU"
    ]


def test_on_a_gpu_it_is_asked_for_before_rows_are_read(calls, monkeypatch):
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"use_liger=true needs liger-kernel.*pip install liger-kernel"):
        liger.refuse_without_liger(GPU)
    with pytest.raises(InputError, match="needs liger-kernel"):
        liger.use_liger_kernels(skeleton(), GPU)
    liger.refuse_without_liger(torch.device("cpu"))
    assert not calls


def test_an_architecture_liger_does_not_know(calls, caplog):
    with caplog.at_level(logging.INFO, "sft"):
        liger.use_liger_kernels(skeleton(MistralForCausalLM, MistralConfig), GPU)
    assert not calls and "liger-kernel 0.8 has no kernels for mistral" in caplog.text


def test_an_architecture_that_changed_under_liger_is_an_error(calls, monkeypatch):
    def apply(model):
        raise AttributeError("no attribute 'experts'")

    monkeypatch.setitem(sys.modules["liger_kernel"].MODEL_TYPE_TO_APPLY_LIGER_FN, "llama", apply)
    with pytest.raises(InputError, match=r"cannot take over this llama .*experts.*set model\.use_liger=false"):
        liger.use_liger_kernels(skeleton(), GPU)
