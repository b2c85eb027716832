"""The table and the picture of a sweep: best first, and a job that failed is not what an earlier one has left."""

import json

import pytest

from sft.track.sweep import outcome_of, ranked, table, write_outcomes


@pytest.fixture
def run(tmp_path):
    """Make the directory of a run with what it left; returns its outcome."""

    def make(label, loss, *, metric="val/loss", code=0, accuracy=0.5, best=None, published=2):
        directory = tmp_path / "sweep" / label
        directory.mkdir(parents=True)
        result = {
            "ended": "finished",
            "steps": 2,
            "total_steps": 2,
            "train_loss": {"first": 3.0, "last": loss + 0.1},
            "val": {"val/loss": loss, "val/token_accuracy": accuracy},
            "best": best,
            "published_step": published,
            "duration_s": 1.0,
        }
        (directory / "result.json").write_text(json.dumps(result))
        lines = [{"step": step, "train/loss": loss + 1 / step, "val/loss": loss + 1 / step} for step in (1, 2)]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return outcome_of(label, directory, metric, code)

    return make


def test_the_best_stands_first_and_a_failed_job_last(run, tmp_path):
    outcomes = [run("lr_1", 2.0), run("lr_2", 1.0, code=1), run("lr_3", 1.5)]
    assert table(outcomes, "val/loss").splitlines()[2:] == [
        "| lr_3 | 1.5000 | 1.6000 | 2 | finished |",
        "| lr_1 | 2.0000 | 2.1000 | 2 | finished |",
        "| lr_2 | - | - | 2 | failed |",
    ]
    paths = write_outcomes(outcomes, "val/loss", tmp_path / "sweep")
    assert [path.name for path in paths] == ["sweep.md", "sweep.json", "sweep.png"]
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    told = json.loads(paths[1].read_text())
    assert told["metric"] == "val/loss" and [each["label"] for each in told["runs"]] == ["lr_3", "lr_1", "lr_2"]


def test_accuracy_should_rise_and_a_loss_fall(run):
    low, high = (run(f"a_{n}", 1.0, metric="val/token_accuracy", accuracy=n / 10) for n in (4, 6))
    assert ranked([low, high], "val/token_accuracy") == [high, low]
    falling = [run("b", 1.0, metric="train/loss"), run("c", 0.5, metric="train/loss")]
    assert [each.label for each in ranked(falling, "train/loss")] == ["c", "b"]


def test_a_run_that_ends_with_its_best_model_is_compared_by_that(run):
    best = {"metric": "val/loss", "value": 0.7, "step": 1}
    assert run("best", 1.0, best=best, published=1).value == 0.7
    assert run("last", 1.0, best=best).value == 1.0


def test_a_job_that_left_nothing_has_failed(tmp_path):
    assert outcome_of("gone", tmp_path / "gone", "val/loss", 0).ended == "failed"
    assert [path.name for path in write_outcomes([outcome_of("gone", tmp_path, "x", 0)], "x", tmp_path)] == [
        "sweep.md",
        "sweep.json",
    ]
