"""A model that draws at random while it trains says so: seed_oss and phimoe differ from run to run."""

import pytest
from transformers import AutoConfig

from sft.model.randomness import say_what_is_drawn
from sft.parallel.world import log


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("seed_oss", "attention_dropout=0.1, residual_dropout=0.1"),
        ("phimoe", "router_jitter_noise=0.01"),
        ("qwen3", None),
    ],
)
def test_dropout_and_jitter_are_said(kind, said, monkeypatch):
    told = []
    monkeypatch.setattr(log, "info", lambda line, *values: told.append(line % values))
    say_what_is_drawn(AutoConfig.for_model(kind))
    assert told == ([f"drawn at random while training, as config.json asks: {said}"] if said else [])
