"""What is learnt about a model's logits is what it does to them; what is not proven is not believed."""

import logging

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    NanoChatConfig,
    RecurrentGemmaConfig,
)

from sft.errors import InputError
from sft.model.logits import learn_logit_form, note_loss_kernel, refuse_loss_kernel
from sft.model.lora import add_adapters
from sft.model.loss_form import BY_TORCH, LOSS_KERNELS, LogitForm
from sft.parallel.world import log
from tests.models import SIZES

FORMS = {
    "llama": (LlamaConfig, {}, LogitForm()),
    "gemma2": (Gemma2Config, {"final_logit_softcapping": 20.0}, LogitForm(cap=20.0)),
    "gemma2 without": (Gemma2Config, {"final_logit_softcapping": None}, LogitForm()),
    "nanochat": (NanoChatConfig, {}, LogitForm(cap=15.0)),
    "cohere": (CohereConfig, {"logit_scale": 0.3}, LogitForm(scale=0.3)),
    "granite": (GraniteConfig, {"logits_scaling": 8.0}, LogitForm(scale=0.125)),
    "gpt2": (GPT2Config, {}, LogitForm()),
}


def skeleton(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", FORMS)
def test_form_of_a_family(family):
    config, options, expected = FORMS[family]
    model = skeleton(config(**SIZES | options))
    found = learn_logit_form(model)
    assert found is model.logit_form
    assert (found.scale, found.cap) == (pytest.approx(expected.scale, rel=1e-9), expected.cap)
    assert not any("forward" in vars(module) for module in model.modules()), "the stubs are gone"


class Biased(LlamaForCausalLM):
    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits + 0.1
        return output


class Clamping(LlamaForCausalLM):
    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits.clamp_(max=10.0)  # in place
        return output


class Truncating(LlamaForCausalLM):
    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits[..., :100]
        return output


class Learning(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = output.logits * self.factor
        return output


class Deaf(LlamaForCausalLM):
    def forward(self, logits_to_keep, **inputs):
        return super().forward(**inputs)


@pytest.mark.parametrize("kind", [Biased, Clamping, Truncating, Learning, Deaf])
def test_whoever_does_more_keeps_whole_logits_and_that_is_said(kind, caplog):
    with torch.device("meta"):
        model = kind(LlamaConfig(**SIZES))
    with caplog.at_level(logging.INFO, "sft"):
        assert learn_logit_form(model) is None
    assert f"{kind.__name__}: the loss is computed from whole logits" in caplog.text


def test_a_soft_cap_by_another_name_is_not_believed():
    assert learn_logit_form(skeleton(RecurrentGemmaConfig(**SIZES, logits_soft_cap=30.0))) is None


def test_an_adapter_on_the_head_makes_it_another_head():
    model = skeleton(LlamaConfig(**SIZES))
    options = {"dropout": 0.0, "use_rslora": False, "use_dora": False, "modules_to_save": [], "dtype": torch.float32}
    add_adapters(model, base="", rank=2, alpha=2, targets=["lm_head", "q_proj"], **options)
    assert learn_logit_form(model) is None


@pytest.mark.parametrize("name", ["torch_fp32", "triton", "triton_fp32"])
def test_a_loss_kernel_for_cuda_is_refused_elsewhere(name):
    with pytest.raises(InputError, match=rf"model.loss_kernel={name} needs CUDA, .*CPU; set model.loss_kernel=torch"):
        refuse_loss_kernel(name, torch.device("cpu"))
    refuse_loss_kernel("auto", torch.device("cpu"))


def test_a_loss_kernel_that_needs_triton_says_what_is_wrong_with_it(monkeypatch):
    monkeypatch.setattr("sft.model.logits.why_not", lambda *_: "is not installed")
    with pytest.raises(InputError, match=r"model.loss_kernel=triton needs triton, which is not installed; set"):
        refuse_loss_kernel("triton", torch.device("cuda"))
    refuse_loss_kernel("torch_fp32", torch.device("cuda"))


def test_auto_is_what_has_run_everywhere():
    """Until a result of scripts/first_gpu.py is committed that compares the others on a GPU."""
    assert LOSS_KERNELS["auto"] == BY_TORCH


def test_a_loss_kernel_without_effect_is_said(caplog):
    config, options, _ = FORMS["llama"]
    model = skeleton(config(**SIZES | options))
    learn_logit_form(model)
    with caplog.at_level("WARNING"):
        log.addHandler(caplog.handler)
        note_loss_kernel(model, "triton")
        assert model.loss_kernel == LOSS_KERNELS["triton"] and not caplog.messages
        vars(model)["logit_form"] = None
        note_loss_kernel(model, "triton")
        log.removeHandler(caplog.handler)
    assert "model.loss_kernel=triton has no effect: the loss is computed from whole logits." in caplog.messages
