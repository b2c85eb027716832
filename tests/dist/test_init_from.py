"""trainer.init_from_checkpoint: the weights of another run, its counters and moments not."""

import json

import pytest

from tests.launch import read_metrics, succeed, train

STANDING_STILL = ["optim.lr=1e-30", "trainer.total_training_steps=1", "trainer.test_freq=1"]
"""Validation after such a step is validation of the weights that the run began with."""


def run_in_one_process(jobs, cwd, ranks=0):
    (cwd / "runs.json").write_text(json.dumps(jobs))
    return succeed([str(cwd / "runs.json")], ranks=ranks, cwd=cwd, module="tests.dist.several")


@pytest.fixture(scope="module")
def source(base, tmp_path_factory):
    """A run of 4 steps on 2 ranks with STATE at 2 and BOTH at 4: (its directory, validation loss after each step)."""
    cwd = tmp_path_factory.mktemp("jobs")
    job = [*base, "trainer.total_training_steps=4", "trainer.test_freq=1", "trainer.save_freq=2"]
    succeed([*job, f"trainer.default_local_dir={cwd / 'first'}"], ranks=2, cwd=cwd)
    return cwd / "first", [line["val/loss"] for line in read_metrics(cwd / "first")]


def test_every_way_to_name_weights_leads_to_them(base, source):
    run_dir, losses = source
    names = {
        "first:step-2": (1, 1e-6),
        f"{run_dir}:step-2": (1, 1e-6),
        str(run_dir / "global_step_2"): (1, 1e-6),
        str(run_dir): (3, 1e-6),
        str(run_dir / "global_step_4" / "huggingface"): (3, 1e-6),  # the model ships in the dtype it came in: fp32
    }
    jobs = [
        [
            *base,
            *STANDING_STILL,
            f"trainer.init_from_checkpoint={name}",
            f"trainer.default_local_dir={run_dir.parent / f'job_{k}'}",
        ]
        for k, name in enumerate(names)
    ]
    run_in_one_process(jobs, run_dir.parent)
    for k, (step, tolerance) in enumerate(names.values()):
        (metrics,) = read_metrics(run_dir.parent / f"job_{k}")
        assert metrics["val/loss"] == pytest.approx(losses[step], rel=tolerance), list(names)[k]
        assert metrics["train/num_input_tokens_seen"] > 0 and metrics["step"] == 1
    facts = json.loads((run_dir.parent / "job_0" / "run.json").read_text())
    assert facts["began_with"] == str(run_dir / "global_step_2")


def test_started_again_the_job_resumes_itself_and_another_name_is_refused(base, source, tmp_path):
    run_dir, _ = source
    job = [*base, f"trainer.default_local_dir={tmp_path / 'second'}", f"trainer.init_from_checkpoint={run_dir}:step-2"]
    straight = [
        *job[:-2],
        job[-1],
        f"trainer.default_local_dir={tmp_path / 'straight'}",
        "trainer.total_training_steps=3",
    ]
    once, twice = ([*job, f"trainer.total_training_steps={number}"] for number in (2, 3))
    done = run_in_one_process([straight, once, twice], tmp_path)
    assert done.stderr.count("starting with the weights of") == 2, "the third start resumed"
    assert [line["train/loss"] for line in read_metrics(tmp_path / "second")] == [
        line["train/loss"] for line in read_metrics(tmp_path / "straight")
    ]
    other = train([*twice[:-2], f"trainer.init_from_checkpoint={run_dir}", twice[-1]], ranks=0, cwd=tmp_path)
    assert other.returncode == 2
    for way_out in ("Leave trainer.init_from_checkpoint as it was", "another trainer.default_local_dir"):
        assert way_out in " ".join(other.stderr.split())
