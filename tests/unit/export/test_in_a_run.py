"""A run whose model cannot be written keeps what it trained, says so, and writes it when it can."""

import json
import shutil

import pytest

from sft.errors import InputError
from tests.assets import tiny_model_dir
from tests.unit.export.conftest import train


def kinds(run_dir):
    lines = (run_dir / "checkpoints.jsonl").read_text().splitlines()
    return [(entry["step"], "state_path" in entry, "sampler_path" in entry) for entry in map(json.loads, lines)]


def test_without_room_the_state_is_kept_and_the_same_command_finishes(tmp_path, monkeypatch):
    model = tiny_model_dir(tmp_path / "model")
    only_at_the_end = ("trainer.save_freq=0", "trainer.save_hf_freq=0")
    with monkeypatch.context() as patch:
        patch.setattr("sft.export.weights.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
        with pytest.raises(InputError) as caught:
            train(tmp_path, model, *only_at_the_end)
    run_dir = tmp_path / "sums"
    assert "no room for the model" in str(caught.value)
    assert f"What was trained is safe in {run_dir / 'global_step_4'}" in str(caught.value)
    assert kinds(run_dir) == [(4, True, False)] and not (run_dir / "config.json").exists()
    train(tmp_path, model, *only_at_the_end)
    assert kinds(run_dir) == [(4, True, False), (4, True, True)] and (run_dir / "config.json").exists()
    assert list(run_dir.glob(".*.partial")) == []


def test_a_model_that_is_not_the_one_trained_is_not_published(tmp_path, monkeypatch):
    model = tiny_model_dir(tmp_path / "model")
    monkeypatch.setattr("sft.export.side_files.stop_tokens_of", lambda source: [])
    monkeypatch.setattr("sft.export.model.write_side_files", without_stop_tokens())
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id is \[\], without .* \[2\]"):
        train(tmp_path, model, "trainer.save_freq=0", "trainer.save_hf_freq=0")
    assert kinds(tmp_path / "sums") == [(4, True, False)]
    assert not list((tmp_path / "sums").rglob("config.json"))


def without_stop_tokens():
    from sft.export.side_files import write_side_files

    return lambda source, target, **options: write_side_files(source, target, **{**options, "stop_token_ids": []})
