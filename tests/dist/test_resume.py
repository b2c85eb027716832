"""The same command again goes on where the last checkpoint stands: same bits on the same ranks, same loss on others."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.launch import MARK, clean_environment, kill_marked, read_metrics, succeed, train

TRAINED = ("train/loss", "train/grad_norm", "train/lr", "train/epoch", "train/num_input_tokens_seen")


def curve(metrics):
    return [[line[key] for key in ("step", *TRAINED)] for line in metrics]


def steps(number):
    return [f"trainer.total_training_steps={number}"]


def test_resumed_runs_repeat_the_uninterrupted_one_bit_for_bit(base, tmp_path):
    """An epoch has 3 steps: stops in its middle (4), at its end (3, 6), five times in one run; validated every step."""
    runs = {"straight": [8], "middle": [4, 8], "end": [3, 8], "often": [1, 2, 4, 5, 6, 8]}
    sequence = [
        [*base, *steps(stop), "trainer.test_freq=1", f"trainer.default_local_dir={tmp_path / name}"]
        for name, stops in runs.items()
        for stop in stops
    ]
    (tmp_path / "runs.json").write_text(json.dumps(sequence))
    succeed([str(tmp_path / "runs.json")], ranks=2, cwd=tmp_path, module="tests.dist.several")
    straight = curve(read_metrics(tmp_path / "straight"))
    assert len(straight) == 8
    for name in ("middle", "end", "often"):
        assert curve(read_metrics(tmp_path / name)) == straight, name
        assert (tmp_path / name / "model.safetensors").read_bytes() == (
            tmp_path / "straight" / "model.safetensors"
        ).read_bytes()


def test_what_torchrun_restarts_goes_on_although_it_was_told_to_start_over(base, tmp_path):
    """Started over, every failure would cost the whole run."""
    command = [*base, "trainer.resume_mode=disable", f"trainer.default_local_dir={tmp_path / 'run'}"]
    succeed([*command, *steps(2)], cwd=tmp_path, ranks=0)
    again = succeed([*command, *steps(3)], cwd=tmp_path, ranks=0, env={"TORCHELASTIC_RESTART_COUNT": "1"})
    assert f"continuing from {tmp_path / 'run' / 'global_step_2'}" in again.stderr
    assert len(read_metrics(tmp_path / "run")) == 3


def test_a_model_without_state_is_no_place_to_resume_from(base, tmp_path):
    command = [*base, "trainer.save_hf_freq=1", f"trainer.default_local_dir={tmp_path / 'run'}", *steps(2)]
    succeed(command, cwd=tmp_path, ranks=0)
    named = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path / 'run' / 'global_step_1'}"]
    refused = train([*command, *named], cwd=tmp_path, ranks=0)
    assert refused.returncode == 2 and "global_step_1 is SAMPLER, a model without optimizer" in refused.stderr


def test_a_named_checkpoint_can_be_taken_instead_of_the_newest(base, tmp_path):
    command = [*base, "trainer.save_freq=1", f"trainer.default_local_dir={tmp_path / 'run'}"]
    succeed([*command, *steps(3)], cwd=tmp_path, ranks=0)
    straight = curve(read_metrics(tmp_path / "run"))
    named = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path / 'run' / 'global_step_1'}"]
    elsewhere = [*base, *named, *steps(3), f"trainer.default_local_dir={tmp_path / 'elsewhere'}"]
    succeed(elsewhere, cwd=tmp_path, ranks=0)
    assert curve(read_metrics(tmp_path / "elsewhere")) == straight[1:]


def test_going_back_to_an_earlier_checkpoint_sets_the_later_ones_aside(base, tmp_path):
    """Left in place they would be taken for newer, kept by max_ckpt_to_keep, and resumed from the next time."""
    run_dir = tmp_path / "run"
    command = [*base, "trainer.save_freq=1", f"trainer.default_local_dir={run_dir}"]
    succeed([*command, *steps(4)], cwd=tmp_path, ranks=0)
    back = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={run_dir / 'global_step_1'}"]
    succeed([*command, *back, *steps(3), "trainer.max_ckpt_to_keep=1", "optim.lr=1e-3"], cwd=tmp_path, ranks=2)
    assert [path.name for path in run_dir.glob("global_step_*")] == ["global_step_3"]
    (superseded,) = run_dir.glob("superseded_*")
    assert sorted(path.name for path in superseded.iterdir()) == ["global_step_2", "global_step_3", "global_step_4"]


def test_starting_over_on_several_ranks(base, tmp_path):
    """Rank 0 moves the old run away while the other looks: they must not come to different conclusions."""
    command = [*base, *steps(2), f"trainer.default_local_dir={tmp_path / 'run'}"]
    succeed(command, cwd=tmp_path, ranks=2)
    before = curve(read_metrics(tmp_path / "run"))
    succeed([*command, "trainer.resume_mode=disable"], cwd=tmp_path, ranks=2)
    assert curve(read_metrics(tmp_path / "run")) == before


def test_another_number_of_ranks_continues_with_the_same_samples(base, tmp_path):
    def run(name, ranks, stop):
        overrides = [
            *base,
            *steps(stop),
            "data.micro_batch_size_per_gpu=1",
            f"trainer.default_local_dir={tmp_path / name}",
        ]
        succeed(overrides, ranks=ranks, cwd=tmp_path)
        return read_metrics(tmp_path / name)

    straight = run("straight", 2, 8)
    run("changing", 2, 2)
    run("changing", 1, 4)
    changing = run("changing", 4, 8)
    for before, after in zip(straight, changing, strict=True):
        for key in TRAINED:
            assert after[key] == pytest.approx(before[key], rel=1e-5), (before["step"], key)


def test_whatever_an_optimizer_remembers_is_resumed_and_moves_to_other_ranks_if_it_is_cut_as_the_weights(tmp_path):
    """Its parts on two ranks, one of them empty; 8-bit codes whose scales belong to one cut of the weight stay."""
    done = succeed([str(tmp_path)], ranks=2, cwd=tmp_path, module="tests.dist.remembering")
    for rank in range(2):
        assert f"momentum rank {rank} goes on alone and back" in done.stdout
        told = (
            f"odd rank {rank} is refused: {tmp_path / 'odd' / 'global_step_3'} holds scales of 0.weight for the parts "
        )
        assert told in done.stdout, done.stdout
    assert "Resume on as many ranks as wrote it" in done.stdout


def test_killed_at_any_moment_and_started_again(base, tmp_path):
    """kill -9 of every rank while it trains and saves; the same command then ends as if nothing had happened."""
    command = [*base, *steps(30), "trainer.save_freq=3", "trainer.max_ckpt_to_keep=2", "optim.lr_scheduler=cosine"]
    succeed([*command, f"trainer.default_local_dir={tmp_path / 'straight'}"], ranks=2, cwd=tmp_path)
    killed = [*command, f"trainer.default_local_dir={tmp_path / 'killed'}"]
    kill_after_checkpoint(killed, tmp_path / "killed", ranks=2, checkpoint="global_step_6")
    done = succeed(killed, ranks=2, cwd=tmp_path)
    assert "continuing from" in done.stderr
    assert curve(read_metrics(tmp_path / "killed")) == curve(read_metrics(tmp_path / "straight"))
    left = sorted(path.name for path in (tmp_path / "killed").iterdir() if "global_step" in path.name)
    assert left == ["global_step_27", "global_step_30"]


def kill_after_checkpoint(overrides, run_dir, *, ranks, checkpoint):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    process = subprocess.Popen(
        [*launcher, "-m", "sft.fsdp_sft_trainer", *overrides],
        cwd=run_dir.parent,
        env=clean_environment() | {MARK: "to-be-killed"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (run_dir / checkpoint).is_dir():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it was killed"
        os.sched_yield()
    kill_marked("to-be-killed")
    process.wait()
    assert not (run_dir / "config.json").exists(), "killed too late: the run had finished"


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(base, tmp_path):
    run_dir = tmp_path / "run"
    command = [*base, "trainer.save_freq=1", f"trainer.default_local_dir={run_dir}"]
    succeed([*command, *steps(3)], cwd=tmp_path, ranks=0)
    before = curve(read_metrics(run_dir))
    file = run_dir / "global_step_3" / "state" / "rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    done = succeed([*command, *steps(4)], cwd=tmp_path, ranks=0)
    assert "rank_00000.safetensors is not what was written" in done.stderr
    assert f"continuing from {run_dir / 'global_step_2'}" in done.stderr
    assert curve(read_metrics(run_dir))[:3] == before


def test_where_no_checkpoint_is_good_the_run_begins_anew_and_keeps_only_its_own(base, tmp_path):
    run_dir = tmp_path / "run"
    command = [*base, *steps(2), f"trainer.default_local_dir={run_dir}", "trainer.max_ckpt_to_keep=1"]
    succeed(command, cwd=tmp_path, ranks=0)
    before = curve(read_metrics(run_dir))
    (run_dir / "global_step_2" / "manifest.json").unlink()
    succeed([*command, "trainer.save_freq=1"], cwd=tmp_path, ranks=0)
    assert curve(read_metrics(run_dir)) == before
    assert [path.name for path in run_dir.glob("global_step_*")] == ["global_step_2"]
    assert (run_dir / "global_step_2" / "manifest.json").is_file()


def test_another_run_in_the_same_directory_is_refused_with_the_difference(base, tmp_path):
    command = [*base, *steps(1), f"trainer.default_local_dir={tmp_path / 'run'}"]
    succeed(command, cwd=tmp_path, ranks=0)
    refused = train([*command, "trainer.seed=5", *steps(2)], cwd=tmp_path, ranks=0)
    assert refused.returncode == 2
    assert "seed: the checkpoint has 1, this run 5" in refused.stderr
    started_over = succeed([*command, "trainer.seed=5", "trainer.resume_mode=disable"], cwd=tmp_path, ranks=0)
    assert "superseded_" in started_over.stderr
    (superseded,) = (tmp_path / "run").glob("superseded_*")
    assert (superseded / "global_step_1").is_dir() and (superseded / "model.safetensors").is_file()
