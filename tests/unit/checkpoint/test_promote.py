"""A model leaves its run verified, with a note of where it came from; or it is said why there is none."""

import json
import runpy
import sys

import pytest

from sft.checkpoint.__main__ import main as checkpoint_command
from tests.launch import REPOSITORY
from tests.runs import names_in


@pytest.fixture
def finished(run):
    """STATE at 1 and 3, SAMPLER at 2, BOTH at 4."""
    for step, kind in {1: "STATE", 2: "SAMPLER", 3: "STATE", 4: "BOTH"}.items():
        run.train_to(step)
        run.save(kind)
    return run


@pytest.fixture
def script(finished, monkeypatch, capsys):
    """Runs the script as a command would; returns (exit code or message, what it printed)."""

    def script(*arguments):
        ledger = str(finished.dir / "checkpoints.jsonl")
        monkeypatch.setattr(sys, "argv", ["promote", "--checkpoints-jsonl", ledger, *arguments])
        try:
            runpy.run_path(str(REPOSITORY / "scripts" / "promote_checkpoint.py"), run_name="__main__")
        except SystemExit as end:
            return end.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return script


def test_the_newest_model_by_default_and_what_is_said_of_it(finished, script):
    code, printed = script()
    assert code == 0
    target = finished.dir / "promoted" / "job-step-4"
    assert printed.strip() == str(target)
    assert names_in(target) == ["config.json", "model.safetensors", "promotion.json"]
    promotion = json.loads((target / "promotion.json").read_text())
    assert promotion["checkpoint"] == "global_step_4" and promotion["base_model"] == "org/base"
    assert promotion["data_consumed"] == 32 and promotion["files"].keys() == {"config.json", "model.safetensors"}


def test_it_is_on_the_disk_before_it_has_its_name(finished, script, events):
    assert script()[0] == 0
    named = events.index("rename job-step-4")
    assert {"config.json", "model.safetensors", "promotion.json", ".job-step-4.partial"} <= set(events[:named])
    assert events[named + 1 :] == ["promoted"]


def test_a_step_a_base_model_and_a_name_of_ones_own(finished, script):
    assert script("--step", "2", "--model", "org/other", "--output-model-id", "answer-42")[0] == 0
    promotion = json.loads((finished.dir / "promoted" / "answer-42" / "promotion.json").read_text())
    assert promotion["step"] == 2 and promotion["base_model"] == "org/other"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "9"], "step 9 is not in the ledger (steps with a model: 2, 4)"),
        (["--step", "3"], "step 3 is STATE, which holds no model (steps with a model: 2, 4). Only SAMPLER and BOTH"),
        (["--output-model-id", "../up"], "may hold letters, digits"),
        (["--checkpoints-jsonl", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_what_cannot_be_promoted_is_said(finished, script, arguments, message):
    error, printed = script(*arguments)
    assert error.startswith("error: ") and message in error and not printed
    assert not (finished.dir / "promoted").exists()


def test_a_damaged_model_is_not_promoted(finished, script):
    (finished.dir / "global_step_4" / "huggingface" / "model.safetensors").write_bytes(b"weightz")
    assert "model.safetensors is not what was written" in script()[0]
    assert not list(finished.dir.glob("promoted/*"))


def test_a_model_of_that_name_is_never_overwritten(finished, script):
    assert script("--output-model-id", "mine")[0] == 0
    assert "promoted/mine exists" in script("--output-model-id", "mine", "--step", "2")[0]


def test_the_table_of_a_run(finished, monkeypatch, capsys):
    (finished.dir / "global_step_3" / "state" / "rng_00000.safetensors").unlink()
    monkeypatch.setattr(sys, "argv", ["sft.checkpoint", "list", str(finished.dir)])
    assert checkpoint_command() == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert [row[:3] for row in rows] == [
        ["1", "STATE", "8"],
        ["2", "SAMPLER", "16"],
        ["3", "STATE", "24"],
        ["4", "BOTH", "32"],
    ]
    assert rows[2][-2:] == ["state/rng_00000.safetensors is missing", "nothing"]
    assert rows[3][-2:] == ["yes", "resume, load, promote, init_from_checkpoint"]


def test_the_table_of_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sft.checkpoint", "list", str(tmp_path)])
    assert checkpoint_command() == 2
    assert "holds no checkpoint" in capsys.readouterr().err
