"""Small runs that are over, with every kind of checkpoint."""

import pytest

from tests.assets import base_model_dir, tiny_model_dir
from tests.runs import train


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
