"""What changed since a checkpoint is told by key, old and new value, never by a hash."""

import logging

import pytest

from sft.checkpoint import load
from sft.checkpoint.changes import changes, differences, explained
from sft.checkpoint.manifest import CheckpointError
from tests.runs import ABOUT, start_run

SETTINGS = {"data.max_length": 10_000_000, "optim.lr": 1e-5, "optim.betas": (0.9, 0.95)}


def test_settings_by_key_old_and_new():
    told = changes({"optim.lr": 1e-5, "optim.betas": [0.9, 0.95], "gone": 1}, SETTINGS | {"optim.lr": 1e-3, "new": 1})
    assert told == {"optim.lr": "optim.lr: 1e-05 -> 0.001"}


def test_hashes_are_explained():
    differs = differences({"data": "a", "seed": 1, "tokens": "x"}, {"data": "b", "seed": 2, "tokens": "y"})
    changed = {"data.max_length": "data.max_length: 10000000 -> 2048"}
    assert explained(differs, changed) == [changed["data.max_length"], "seed: the checkpoint has 1, this run 2"]
    (line, _) = explained(differs, {})
    assert line.startswith("data: the rows, or how they become tokens")


def test_equal_tokens_are_the_same_data():
    assert differences({"data": "a", "tokens": "x"}, {"data": "b", "tokens": "x"}) == {}
    assert "data" in differences({"data": "a"}, {"data": "b", "tokens": "x"}), "of an older checkpoint nobody knows"
    assert differences({"data": "a"}, {"data": "a", "tokens": "x"}) == {}


def test_a_resume_says_or_refuses(tmp_path, world_of_one, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sft"), "propagate", True)
    caplog.set_level(logging.INFO, "sft")
    about = ABOUT | {"settings": {"data.max_length": 10_000_000, "optim.lr": 1e-5}}
    run = start_run(tmp_path / "job", world_of_one, about=about | {"fingerprint": {"data": "a", "tokens": "x"}})
    run.train_to(1)
    checkpoint = run.save("STATE")
    ours = {"data.max_length": 2048, "optim.lr": 1e-3}

    def resume(tokens):
        fingerprint = {"data": "b", "tokens": tokens}
        return load(checkpoint, run.model, run.optimizer, world=world_of_one, fingerprint=fingerprint, settings=ours)

    assert resume("x").step == 1
    assert "since global_step_1: optim.lr: 1e-05 -> 0.001" in caplog.messages
    with pytest.raises(CheckpointError, match=r"another run:\n  data\.max_length: 10000000 -> 2048\nUse") as refused:
        resume("y")
    assert "optim.lr" not in str(refused.value)
