"""Samples that a model would fail on are refused before the first step."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sft.errors import InputError
from sft.model.fits import refuse_misfit_samples
from sft.types import Sample

SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
KINDS = {
    "qwen3": SIZES | {"max_position_embeddings": 16, "num_key_value_heads": 2},
    "opt": SIZES | {"max_position_embeddings": 16, "ffn_dim": 16, "word_embed_proj_dim": 16},
    "gpt2": {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16},
    "gptj": {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "rotary_dim": 8},
    "mamba": {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
}


class Samples(list):
    """Samples in memory, as the cache gives them."""

    @property
    def lengths(self):
        return np.array([len(sample.input_ids) for sample in self])

    def where(self, index):
        return f"rows.jsonl:{index + 1}"


def look(kind, *lengths, ids=3, vocabulary=32):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind]))
    samples = Samples(Sample(np.full(n, ids, np.int32), np.ones(n, np.float32)) for n in lengths)
    refuse_misfit_samples(model, [samples], vocabulary=range(vocabulary), max_length=64)


@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_is_let_through(kind):
    look(kind, 16, 3)


@pytest.mark.parametrize("kind", ["opt", "gpt2", "gptj"])
def test_a_sample_beyond_a_table_of_positions_is_refused(kind):
    with pytest.raises(InputError, match=r"longest sample has 17 tokens, and \w+ has a table of 16 positions.*=16"):
        look(kind, 3, 17)


@pytest.mark.parametrize("kind", ["qwen3", "mamba"])
def test_others_may_be_longer_and_that_is_said(kind, caplog):
    with caplog.at_level("WARNING", logger="sft"):
        look(kind, 17)
    assert ("data.max_length=64 is beyond the 16 positions" in caplog.text) == (kind == "qwen3")


def test_an_id_without_a_row_is_refused_with_its_row_of_the_file():
    look("qwen3", 3, vocabulary=40)  # tokens that no sample has do no harm
    with pytest.raises(InputError, match=r"rows\.jsonl:1: the tokenizer makes the id 35 .* have 32 rows"):
        look("qwen3", 3, ids=35, vocabulary=40)
