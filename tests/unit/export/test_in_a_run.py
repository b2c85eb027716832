"""A run whose model cannot be written keeps what it trained, says so, and writes it when it can."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sft.errors import InputError
from sft.model.write.directory import export
from tests.assets import tiny_model_dir
from tests.runs import train


def kinds(run_dir):
    lines = (run_dir / "checkpoints.jsonl").read_text().splitlines()
    return [(entry["step"], "state_path" in entry, "sampler_path" in entry) for entry in map(json.loads, lines)]


def test_without_room_the_state_is_kept_and_the_same_command_finishes(tmp_path, monkeypatch):
    model = tiny_model_dir(tmp_path / "model")
    only_at_the_end = ("trainer.save_freq=0", "trainer.save_hf_freq=0")
    with monkeypatch.context() as patch:
        patch.setattr("sft.model.write.weights.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
        with pytest.raises(InputError) as caught:
            train(tmp_path, model, *only_at_the_end)
    run_dir = tmp_path / "sums"
    assert "no room for the model" in str(caught.value)
    assert f"What was trained is safe in {run_dir / 'global_step_4'}" in str(caught.value)
    assert kinds(run_dir) == [(4, True, False)] and not (run_dir / "config.json").exists()
    train(tmp_path, model, *only_at_the_end)
    assert kinds(run_dir) == [(4, True, False), (4, True, True)] and (run_dir / "config.json").exists()
    assert list(run_dir.glob(".*.partial")) == []


def no_adapter(patch):
    patch.setattr("sft.model.lora.save_file", failing)


def no_source(patch):
    patch.setattr("sft.model.write.weights.StoredTensors.read", failing)


def no_headers(patch):
    patch.setattr("sft.model.write.weights.StoredTensors.of_whole_tensors", failing)


def no_index(patch):
    write_text = Path.write_text
    patch.setattr("sft.model.write.weights.MAX_FILE_BYTES", 100_000)
    patch.setattr(Path, "write_text", lambda p, text: (failing if "index" in p.name else write_text)(p, text))


def failing(*_, **__):
    raise OSError("gone for a moment")


@pytest.mark.parametrize("breaking", [no_adapter, no_source, no_headers, no_index])
def test_what_fails_on_the_rank_that_writes_fails_everywhere_and_the_state_is_kept(tmp_path, monkeypatch, breaking):
    """InputError is what all ranks agree on; anything else ends one rank and leaves the others waiting."""
    model = tiny_model_dir(tmp_path / "model", tie=False)
    end = ("model.lora_rank=2", "trainer.save_freq=0", "trainer.save_hf_freq=0", "trainer.total_training_steps=1")
    with monkeypatch.context() as patch, pytest.raises(InputError) as caught:
        breaking_at_export(patch, breaking)
        train(tmp_path, model, *end)
    assert "gone for a moment" in str(caught.value) and "What was trained is safe in" in str(caught.value)
    assert kinds(tmp_path / "sums") == [(1, True, False)]


def test_adapters_start_as_configured_and_a_run_keeps_its_start(tmp_path):
    model = tiny_model_dir(tmp_path / "model")
    lora = ("model.lora_rank=2", "optim.weight_decay=0")
    run_dir = train(tmp_path, model, *lora, "model.init_lora_weights=gaussian", "trainer.total_training_steps=1")
    weights = load_file(run_dir / "lora_adapter" / "adapter_model.safetensors")
    drawn = torch.cat([weight.flatten() for name, weight in weights.items() if "lora_A" in name])
    assert drawn.std().item() == pytest.approx(1 / 2, rel=0.1), "B is 0, so that one step leaves A alone"
    with pytest.raises(InputError, match="lora_start: the checkpoint has 'gaussian', this run None"):
        train(tmp_path, model, *lora, "trainer.total_training_steps=2")


def breaking_at_export(patch, breaking):
    """Not before: the same reader loads the model."""
    patch.setattr("sft.train.save.export", lambda *given, **options: (breaking(patch), export(*given, **options)))


def test_a_model_that_is_not_the_one_trained_is_not_published(tmp_path, monkeypatch):
    model = tiny_model_dir(tmp_path / "model")
    monkeypatch.setattr("sft.model.write.side_files.stop_tokens_of", lambda source: [])
    monkeypatch.setattr("sft.model.write.directory.write_side_files", without_stop_tokens())
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id is \[\], without .* \[2\]"):
        train(tmp_path, model, "trainer.save_freq=0", "trainer.save_hf_freq=0")
    assert kinds(tmp_path / "sums") == [(4, True, False)]
    assert not list((tmp_path / "sums").rglob("config.json"))


def without_stop_tokens():
    from sft.model.write.side_files import write_side_files

    return lambda source, target, **options: write_side_files(source, target, **{**options, "stop_token_ids": []})
