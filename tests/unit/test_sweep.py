"""Sixteen families of the sweep (scripts/sweep_families.py), here in one process; and that a sweep can fail."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

SCRIPTS = Path(__file__).parents[2] / "scripts"

FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3", "gemma2", "gemma3_text"),
    *("gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3", "lfm2", "qwen3_5_text", "llava"),
)


@pytest.fixture(scope="module")
def scripts():
    """The modules of the sweep: (sweep_families, sweep_table)."""
    sys.path.insert(0, str(SCRIPTS))
    import sweep_families
    import sweep_table

    yield sweep_families, sweep_table
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(autouse=True)
def without_curves(monkeypatch):
    """Pictures of losses take a third of the time of so small a run."""
    for room in ("sft.track.curve.draw", "sft.train.result.draw_curve"):
        monkeypatch.setattr(room, lambda *_, **__: None)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_trains_as_a_plain_loop_does(kind, scripts, tmp_path):
    row = scripts[0].sweep(kind, tmp_path / kind, modes=("full", "packed", "LoRA"), launch=scripts[0].here)
    assert row.verdicts == {"full": "right", "packed": "right", "LoRA": "right"}, row.notes


def test_a_family_that_cannot_be_built_says_so(scripts, tmp_path):
    row = scripts[0].sweep("dbrx", tmp_path / "dbrx", modes=("full",), launch=scripts[0].here)
    assert row.verdicts == {} and row.notes.startswith("cannot be built: ")


def test_every_difference_is_found(scripts, tmp_path):
    course = scripts[0].Course([2.0, 1.5], [0.5, 0.4], 2.0, 1.0)
    assert scripts[0].differences(course, course) == []
    assert scripts[0].differences(course, scripts[0].Course([], [], 2.0, math.nan)) == []
    for change, said in (
        ({"losses": [2.0, 1.5001]}, "loss 2 1.500000, not 1.500100"),
        ({"grad_norms": [0.501, 0.4]}, "gradient norm 1 0.500000, not 0.501000"),
        ({"before": 2.1}, "first validation 2.000000, not 2.100000"),
        ({"after": 1.1}, "last validation 1.000000, not 1.100000"),
    ):
        assert scripts[0].differences(course, replace(course, **change)) == [said]


def test_what_a_model_lost_or_invented_is_found(scripts, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    scripts[0].write("qwen3", source)
    assert scripts[0].unlike(source, source) == []
    out.mkdir()
    weights = load_file(source / "model.safetensors")
    weights["new"] = weights.pop("model.norm.weight")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].half()
    save_file(weights, out / "model.safetensors")
    lost, new, other = scripts[0].unlike(source, out)
    assert (lost, new) == ("model.norm.weight is lost", "new is new")
    assert other.startswith("model.embed_tokens.weight is ([384, 64], 'F16'), was")


def test_a_sweep_of_one_mode_keeps_what_is_known_of_the_others(scripts):
    table = scripts[1]
    reasons = "of all of them; packed, sp: no; and why; LoRA: other"
    earlier = table.Row("a", {"full": "right", "packed": "refused", "sp": "refused", "LoRA": "wrong"}, reasons)
    row = table.joined(earlier, table.Row("a", {"sp": "right"}, "of all of them"))
    assert row.verdicts == {"full": "right", "packed": "refused", "sp": "right", "LoRA": "wrong"}
    assert row.notes == "packed: no; and why; LoRA: other; of all of them"
    assert table.joined(earlier, table.Row("a", dict.fromkeys(table.COLUMNS, "right"), "")).notes == "of all of them"
    assert table.joined(None, row) == table.joined(table.Row("a", {}, "not tried"), row) == row


def test_a_wrong_run_is_wrong(scripts, tmp_path, monkeypatch):
    """The same run, held against a loop that learned otherwise: everything that a mode is judged by can fail."""
    families = scripts[0]
    plain = families.train_plainly

    def slower(*args):
        course = plain(*args)
        return replace(course, losses=[course.losses[0], *(loss * 1.001 for loss in course.losses[1:])])

    monkeypatch.setattr(families, "train_plainly", slower)
    row = families.sweep("qwen3", tmp_path / "qwen3", modes=("full", "LoRA"), launch=families.here)
    assert row.verdicts == {"full": "wrong", "LoRA": "wrong"}
    assert row.notes.startswith("full: loss 2 ") and "; LoRA: loss 2 " in row.notes


def test_children_answer_for_themselves(scripts):
    """Whatever becomes of a process, the sweep goes on."""
    families = scripts[0]
    assert families.forked(right, ranks=2) == families.Outcome("right", "rank 0 of 2")
    broken = families.forked(breaks)
    assert broken.verdict == "crashed" and broken.why.startswith("KeyError: 'no such thing' (test_sweep.py:")
    assert families.forked(dies) == families.Outcome("crashed", "the process died")


def right():
    import os

    import sweep_families

    return sweep_families.Outcome("right", f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}")


def breaks():
    raise KeyError("no such thing")


def dies():
    import os

    os._exit(1)


def test_the_table_is_read_as_it_was_written(scripts, tmp_path):
    table = scripts[1]
    rows = {
        "qwen3": table.Row("qwen3", dict.fromkeys(table.COLUMNS, "right"), ""),
        "odd": table.Row("odd", {"full": "right", "LoRA": "refused"}, "LoRA: it says a|b"),
        "none": table.Row("none", {}, "cannot be built"),
    }
    table.write_table(tmp_path / "models.md", rows)
    assert table.read_table(tmp_path / "models.md") == rows
    assert "on 3 families, of which 2 could be built small and 1 are right" in (tmp_path / "models.md").read_text()
    assert table.read_table(tmp_path / "none.md") == {}


@pytest.mark.parametrize(
    ("before", "now", "status"),
    [
        ("right", "right", 0),
        ("refused", "refused", 0),
        ("refused", "right", 0),
        ("right", "refused", 1),
        ("-", "wrong", 1),
    ],
)
def test_what_is_no_longer_right_turns_the_sweep_red(before, now, status, scripts, tmp_path, monkeypatch):
    families, table = scripts
    path = tmp_path / "models.md"
    table.write_table(path, {"qwen3": table.Row("qwen3", {"full": before}, "")})
    monkeypatch.setattr(families, "sweep", lambda kind, *_, **__: table.Row(kind, {"full": now}, ""))
    monkeypatch.setattr(sys, "argv", ["sweep", "qwen3", "--table", str(path)])
    assert families.main() == status
    assert table.read_table(path)["qwen3"].verdicts == {"full": now}
