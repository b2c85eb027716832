"""What is said of a model when it is built."""

import pytest
from transformers import LlamaConfig, Qwen3MoeConfig

from sft.model.place import _say_what_routers_miss

MESSAGE = "output_router_logits=true, router_aux_loss_coef=0.02"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Qwen3MoeConfig(output_router_logits=True, router_aux_loss_coef=0.02), True),
        (Qwen3MoeConfig(output_router_logits=True, router_aux_loss_coef=0.0), False),
        (Qwen3MoeConfig(output_router_logits=False, router_aux_loss_coef=0.02), False),
        (LlamaConfig(), False),
    ],
)
def test_a_router_loss_that_is_not_added_is_said(config, said: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="sft"):
        _say_what_routers_miss(config)
    assert (MESSAGE in caplog.text) == said
