"""What sequence parallelism cannot split is refused before a weight is read."""

import pytest
import torch.distributed as dist
from transformers import Qwen3Config

from sft.errors import InputError
from sft.model.load import build_skeleton
from sft.parallel.ulysses import exchange_heads
from tests.assets import attention_on_cpu

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}


class FourRanks:
    """Only asked for its size: every refusal happens before the first exchange."""

    def size(self):
        return 4


@pytest.fixture
def skeleton(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)

    def skeleton(**overrides):
        sizes = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "head_dim": 16, "pad_token_id": 0}
        config = Qwen3Config(**sizes | {"num_attention_heads": 4, "num_key_value_heads": 2} | overrides)
        attention = attention_on_cpu(config, packed=True)
        return build_skeleton(config, attention=attention, dtype=None, trust_remote_code=False)

    return skeleton


def test_the_kernel_in_use_is_wrapped(skeleton):
    model = skeleton()
    exchange_heads(model, FourRanks())
    assert model.config._attn_implementation == "packed_by_sample_ulysses"


def test_heads_that_do_not_divide(skeleton):
    with pytest.raises(InputError, match=r"must divide the 6 attention heads of qwen3; valid on 8 ranks: 1, 2\."):
        exchange_heads(skeleton(num_attention_heads=6), FourRanks())


@pytest.mark.parametrize("rope", [{"original_max_position_embeddings": 64, **LONGROPE}, DYNAMIC])
def test_rotation_by_the_longest_position_in_the_row(skeleton, rope):
    """A rank that holds the start of a long sample would rotate it as a short one."""
    model = skeleton(rope_parameters={"rope_theta": 10_000.0, **rope}, max_position_embeddings=256)
    with pytest.raises(InputError, match=rope["rope_type"]):
        exchange_heads(model, FourRanks())


def test_a_model_that_does_not_ask_for_its_kernel(skeleton, monkeypatch):
    model = skeleton()
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(InputError, match="does not call it through"):
        exchange_heads(model, FourRanks())
