"""What a model directory says of itself."""

import pytest
from transformers import Gemma3nTextConfig, Gemma4TextConfig, MambaConfig, Qwen3Config

from sft.model.pretrained import largest_of


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        (Qwen3Config(head_dim=16), "head_dim", 16),
        (MambaConfig(), "num_attention_heads", 0),
        (Gemma3nTextConfig(num_hidden_layers=2, intermediate_size=[96, 128]), "intermediate_size", 128),
        (Gemma4TextConfig(head_dim=256, global_head_dim=512), "head_dim", 512),
    ],
)
def test_layers_that_differ_count_with_the_largest(config, name, expected):
    assert largest_of(config, name) == expected
