"""What would keep a trained model from being written or opened is found before anything is trained."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft.errors import InputError
from sft.model.load import build_skeleton
from sft.model.pretrained import load_config
from sft.model.write.proof import prove_export, prove_generation_settings
from tests.assets import attention_on_cpu, tiny_model_dir


def skeleton(source):
    config = load_config(source, trust_remote_code=False)
    return build_skeleton(
        config, attention=attention_on_cpu(config, packed=False), dtype=torch.float32, trust_remote_code=False
    )


def test_weights_that_would_be_rounded_to_whole_numbers_are_refused(tmp_path):
    source = tiny_model_dir(tmp_path)
    prove_export(skeleton(source), source)
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].int()
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"rounded to whole numbers, in which the files have them: model\.norm\.weight"
    ):
        prove_export(skeleton(source), source)


@pytest.mark.parametrize("settings", ["{", "[]", json.dumps({"cache_implementation": "nope"})])
def test_generation_settings_that_transformers_does_not_open_are_refused(settings, tmp_path):
    file = tmp_path / "generation_config.json"
    prove_generation_settings(tmp_path)
    file.write_text('{"do_sample": false, "temperature": 0.5}')  # it warns, and opens
    prove_generation_settings(tmp_path)
    file.write_text(settings)
    with pytest.raises(InputError, match=r"generation_config\.json would keep the trained model from being opened"):
        prove_generation_settings(tmp_path)
