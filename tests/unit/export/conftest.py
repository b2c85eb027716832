"""Small runs that are over, with every kind of checkpoint."""

import pytest

from sft import load_config, run
from tests.assets import base_model_dir, tiny_model_dir, write_jsonl

ROWS = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}."} for k in range(8)]


def train(home, model, *overrides):
    """A run of 4 steps: global_step_2 is STATE, 3 is SAMPLER, 4 is BOTH."""
    write_jsonl(home / "train.jsonl", ROWS)
    config = [
        f"model.partial_pretrain={model}",
        f"data.train_files={home / 'train.jsonl'}",
        "data.val_files=null",
        f"data.cache_dir={home / 'cache'}",
        "data.train_batch_size=4",
        "model.fsdp_config.compute_dtype=fp32",
        "optim.lr=1e-2",
        "trainer.total_training_steps=4",
        "trainer.save_freq=2",
        "trainer.save_hf_freq=3",
        f"trainer.default_local_dir={home / 'sums'}",
    ]
    run(load_config([*config, *overrides], warn=print))
    return home / "sums"


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """The run directory of a run that trained all weights, of a bf16 model with tied embeddings."""
    home = tmp_path_factory.mktemp("full")
    return train(home, tiny_model_dir(home / "model", dtype="bfloat16"))


@pytest.fixture(scope="session")
def lora(tmp_path_factory):
    """The run directory of a LoRA run."""
    home = tmp_path_factory.mktemp("lora")
    return train(home, tiny_model_dir(home / "model", tie=False), "model.lora_rank=2", "model.modules_to_save=[norm]")


@pytest.fixture(scope="session")
def grown(tmp_path_factory):
    """The run directory of a run that gave a base model ChatML, and its vocabulary rows."""
    home = tmp_path_factory.mktemp("grown")
    return train(home, base_model_dir(home / "model"))
