"""Rows of several samples give every family the numbers of its samples alone, in transformers' eager attention."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from sft.data.order.collate import collate
from sft.errors import InputError
from sft.model.attention import Available, choose_attention, expect_calls, flex, interface, kernels, register
from sft.model.attention.choice import KERNELS
from sft.model.load import build_skeleton
from sft.train.loss import token_ce_sum
from tests.assets import attention_on_cpu, boundaries
from tests.kernels import flash_2, varlen_of_torch_2_13
from tests.models import FAMILIES, LENGTHS, alone, config_of, samples

CPU = Available("cpu")
LAYOUTS = {"packed": True, "padded": False}
ON_GPU = Available("cuda", (9, 0))  # where, in fp32, sdpa is the kernel of both layouts


def eager_model(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config_of(family), attn_implementation="eager", dtype=torch.float32).eval()


def in_our_layout(model, family, *, packed, here=CPU):
    """The same weights, with our attention."""
    attention = choose_attention(config_of(family), wanted="auto", packed=packed, half=False, here=here)
    register(attention)
    ours = AutoModelForCausalLM.from_config(
        config_of(family), attn_implementation=attention.implementation, dtype=torch.float32
    ).eval()
    ours.load_state_dict(model.state_dict())
    return ours


@pytest.mark.parametrize(("layout", "here"), [("packed", CPU), ("padded", CPU), ("padded", ON_GPU)])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_every_gradient(family, layout, here):
    """Relative to the largest gradient of each weight: fp32, and the sums run in another order."""
    theirs = eager_model(family)
    _, expected = alone(theirs)
    expected.backward()
    ours = in_our_layout(theirs, family, packed=LAYOUTS[layout], here=here)
    found = token_ce_sum(ours, collate(samples(), packed=LAYOUTS[layout], pad_id=0))[0]
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    of_name = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        scale = of_name[name].grad.abs().max().item()
        torch.testing.assert_close(weight.grad, of_name[name].grad, rtol=1e-4, atol=1e-5 * scale + 1e-9, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family):
    theirs = eager_model(family)
    expected, _ = alone(theirs)
    ours = in_our_layout(theirs, family, packed=True)
    batch = collate(samples(), packed=True, pad_id=0)
    found = ours(batch.input_ids, position_ids=batch.position_ids, use_cache=False, **batch.boundaries).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


OTHERS = {
    "flex": (flex.flex, set()),
    "varlen": (kernels.varlen(varlen_of_torch_2_13), {"gemma2", "gpt_oss"}),
    "flash_attention_2": (kernels.flash("flash_attention_2", flash_2), {"gpt_oss"}),
}


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_kernels_in_a_model(name, layout, monkeypatch):
    """Through the model, with the slow functions in their place; what they leave out is refused, not ignored."""
    monkeypatch.setattr("tests.kernels.LENGTHS", LENGTHS if LAYOUTS[layout] else (17,) * 3)
    kernel, unable = OTHERS[name]
    monkeypatch.setattr(interface, "load_kernel", lambda _: kernel)
    for family in ("gemma2", "gpt_oss", "mistral"):
        theirs = eager_model(family)
        ours = in_our_layout(theirs, family, packed=True)
        implementation = f"test_{layout}_{KERNELS[name]}"
        interface.AttentionInterface.register(
            implementation, interface.attention_function(kernel, packed=LAYOUTS[layout])
        )
        ours.set_attn_implementation(implementation)
        batch = collate(samples(), packed=LAYOUTS[layout], pad_id=0)
        given = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
        if family in unable:
            with pytest.raises(InputError, match=f"{name} cannot compute the (softcap|sinks)"):
                ours(**given, **batch.boundaries)
            continue
        found = ours(**given, **batch.boundaries).logits
        if not LAYOUTS[layout]:
            found = torch.cat([row[:length] for row, length in zip(found, LENGTHS, strict=True)])[None]
        torch.testing.assert_close(found[0], alone(theirs)[0], rtol=1e-5, atol=1e-5)


def test_nothing_that_a_model_asks_of_its_attention_is_ignored():
    attention = interface.attention_function(kernels.sdpa, packed=True)
    module, q, told = torch.nn.Identity(), torch.randn(1, 2, 5, 4), boundaries(2, 3)
    attention(module, q, q, q, None, **told, position_ids=torch.arange(5), use_cache=False, is_causal=True)
    for options, said in (
        ({"position_bias": q}, "asks for position_bias, which the kernels do not know"),
        ({"is_causal": False}, "is not causal"),
        ({"cu_seqlens": None}, "does not pass on where the samples end"),
    ):
        with pytest.raises(InputError, match=rf"Identity {said}; set use_remove_padding=false"):
            attention(module, q, q, q, None, **told | options)
    with pytest.raises(InputError, match="brings a mask of its own"):
        attention(module, q, q, q, q, **told)


class SelfMade(torch.nn.Module):
    """Attention of a model's own code, which asks nobody."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.projection = torch.nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, **_):
        return self.projection(hidden_states).cumsum(1), None


def test_code_that_computes_attention_by_itself_does_not_pass(monkeypatch):
    """As with trust_remote_code: nothing in its configuration says that it would mix the samples."""
    monkeypatch.setattr(modeling_llama, "LlamaAttention", SelfMade)
    monkeypatch.setattr(LlamaForCausalLM, "__module__", "transformers_modules.somebody.modeling")
    config = config_of("llama")
    model = build_skeleton(
        config, attention=attention_on_cpu(config, packed=True), dtype=torch.float32, trust_remote_code=True
    ).to_empty(device="cpu")
    ids = torch.arange(5)[None]
    with pytest.raises(
        InputError, match=r"computed attention 2 times and asked for it only 0 times.*remove_padding=fa"
    ):
        model(ids, position_ids=ids, use_cache=False, **boundaries(2, 3))


def test_code_that_asks_for_the_kernel_passes():
    model = in_our_layout(eager_model("llama"), "llama", packed=True)
    expect_calls(model, 2)
    ids = torch.arange(5)[None]
    for _ in range(2):  # only the first forward is looked at
        model(ids, position_ids=ids, use_cache=False, **boundaries(2, 3))
    expect_calls(model, 3)
    with pytest.raises(InputError, match="only 2 times"):
        model(ids, position_ids=ids, use_cache=False, **boundaries(2, 3))
