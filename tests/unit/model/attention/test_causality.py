"""A model whose tokens see later ones is refused before the first step, be it by its attention or by its masks."""

import pytest
import torch
from transformers import (
    BioGptConfig,
    BioGptForCausalLM,
    CpmAntConfig,
    CpmAntForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from sft.errors import InputError
from sft.model.attention import prove_causality

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_attention_that_looks_back_passes():
    config = BioGptConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BioGptForCausalLM(config).train()
    prove_causality(model, CPU)
    assert model.training


def test_another_expert_is_no_look_ahead(monkeypatch):
    """In 16 bits, the other tokens of a product may decide how one is rounded, and that which expert it meets."""
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
        intermediate_size=32, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, initializer_range=0.5,
    )  # fmt: skip
    model, calls = Qwen3MoeForCausalLM(config), []

    def flip(_module, args):
        calls.append(None)
        hidden, chosen, weights = args
        return hidden, chosen if len(calls) == 1 else (chosen + 1) % config.num_experts, weights

    model.model.layers[0].mlp.experts.register_forward_pre_hook(flip)
    prove_causality(model, CPU)
    assert len(calls) == 2


def test_masks_that_look_ahead_are_refused():
    """The attention is transformers' sdpa, as on padded rows; the configuration says what may be seen."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
    settings = sizes | {"num_key_value_heads": 2, "intermediate_size": 32, "initializer_range": 0.5}
    prove_causality(Gemma3ForCausalLM(Gemma3TextConfig(**settings)), CPU)
    ahead = Gemma3ForCausalLM(Gemma3TextConfig(**settings, use_bidirectional_attention=True))
    with pytest.raises(InputError, match="Gemma3ForCausalLM looks at tokens that come later"):
        prove_causality(ahead, CPU)


def test_attention_that_looks_ahead_is_refused():
    config = CpmAntConfig(
        vocab_size=64,
        hidden_size=32,
        num_attention_heads=2,
        dim_head=16,
        dim_ff=32,
        num_hidden_layers=1,
        prompt_length=4,
    )
    model = CpmAntForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    with pytest.raises(InputError, match="CpmAntForCausalLM looks at tokens that come later"):
        prove_causality(model, CPU)
