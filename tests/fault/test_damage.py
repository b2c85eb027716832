"""Checkpoints changed after they were written: every damage is found, named, and the one before is used."""

import json
import pickle
import random
import shutil
import signal
from pathlib import Path

import pytest

from sft.checkpoint.find import problems_of
from sft.checkpoint.manifest import describe_file, digest_line
from tests.fault.faults import SAVE_FREQ, saved_steps

FLIPS, LOST, CRAFTED = "bit flipped", "file truncated, missing, swapped", "pickle, link or path that leads out"
NUMBER_OF_FLIPS = 200


class Canary:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def written(command, reference, tmp_path_factory):
    """A run that was stopped after some checkpoints, BOTH among them."""
    from tests.fault.faults import Run

    run = Run(command, tmp_path_factory.mktemp("written"), reference)
    life = run.start("trainer.save_hf_freq=10")
    life.trains(3 * SAVE_FREQ + 5)
    life.hurt(signal.SIGTERM, [0])
    life.ends()
    assert len(saved_steps(run.run_dir)) == 3
    return run.run_dir


@pytest.fixture
def checkpoint(written, tmp_path):
    """A copy of a checkpoint that is both state and model."""
    step = [step for step in saved_steps(written) if step % SAVE_FREQ == 0][-1]
    copy = tmp_path / f"global_step_{step}"
    shutil.copytree(written / copy.name, copy)
    assert problems_of(copy) == []
    return copy


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def found(checkpoint, file):
    """Whether it is said that this file is wrong, and nothing else."""
    name = str(file.relative_to(checkpoint)).replace("manifest.sha256", "manifest.json")  # what it vouches for
    problems = problems_of(checkpoint)
    return len(problems) == 1 and name in problems[0]


def test_every_flipped_bit_is_found_and_its_file_named(checkpoint, rows):
    dice, row = random.Random(7), rows[FLIPS]
    for _ in range(NUMBER_OF_FLIPS):
        file = dice.choice(files_of(checkpoint))
        before = file.read_bytes()
        damaged = bytearray(before)
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        file.write_bytes(damaged)
        row.injected += 1
        row.damaged += 1
        row.detected += found(checkpoint, file)
        file.write_bytes(before)
    assert row.detected == row.damaged
    row.survived += row.detected
    assert problems_of(checkpoint) == []


def test_truncated_missing_and_swapped_files_are_found_and_named(checkpoint, rows):
    row = rows[LOST]
    files = [path for path in files_of(checkpoint) if not path.name.startswith("manifest.")]

    def damage(file, spoil):
        before = file.read_bytes()
        spoil(file)
        row.injected += 1
        row.damaged += 1
        assert found(checkpoint, file), file
        row.detected += 1
        row.survived += 1
        file.write_bytes(before)

    for file in files:
        damage(file, lambda file: file.write_bytes(file.read_bytes()[:-1]))
        damage(file, lambda file: file.write_bytes(b""))
        damage(file, Path.unlink)
    state = [file for file in files if file.name.startswith("rank_")]
    damage(state[0], lambda file: shutil.copy(state[1], file))
    (checkpoint / "manifest.json").unlink()
    assert problems_of(checkpoint) == ["manifest.json is missing"]


def test_nothing_crafted_is_executed_or_followed_and_everything_is_named(checkpoint, tmp_path, rows):
    canary, row = tmp_path / "executed", rows[CRAFTED]
    evil = pickle.dumps(Canary(canary))
    original = (checkpoint / "manifest.json").read_text()
    secret = tmp_path / "secret"
    secret.write_text("not of this run")

    def named(what):
        row.injected += 1
        row.damaged += 1
        problems = problems_of(checkpoint)
        assert len(problems) == 1 and what in problems[0], problems
        row.detected += 1
        row.survived += 1

    for name in (
        "state/rank_00000.pt",
        "state/.metadata",
        "state/__0_0.distcp",
        "state/optimizer.pt",
        "state/rank_00009.safetensors",
        "huggingface/training_args.bin",
        "huggingface/pytorch_model.bin",
        "optimizer.pt",
    ):
        (checkpoint / name).write_bytes(evil)
        named(name)
        (checkpoint / name).unlink()
    for name in ("state/rng_00000.safetensors", "state/rank_00001.safetensors", "huggingface/model.safetensors"):
        before = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(evil)
        named(name)
        (checkpoint / name).unlink()
        (checkpoint / name).symlink_to(secret)
        named(name)
        (checkpoint / name).unlink()
        (checkpoint / name).write_bytes(before)
    for name in ("../../x", str(secret), "state/../../x", "state/a b", "~/x", "state//x"):
        manifest = json.loads(original)
        manifest["files"][name] = describe_file(secret)
        rewrite_manifest(checkpoint, json.dumps(manifest).encode())
        named(repr(name))
    rewrite_manifest(checkpoint, evil)
    named("manifest.json")
    rewrite_manifest(checkpoint, original.encode())
    state = tmp_path / "elsewhere"
    (checkpoint / "state").rename(state)
    (checkpoint / "state").symlink_to(state)
    assert any("state/rank_00000.safetensors is a symbolic link to" in problem for problem in problems_of(checkpoint))
    assert not canary.exists()


def rewrite_manifest(checkpoint, content):
    """As somebody would who can write here: with the hash that belongs to it."""
    (checkpoint / "manifest.json").write_bytes(content)
    (checkpoint / "manifest.sha256").write_bytes(digest_line(content))


def test_the_command_names_what_is_damaged_or_crafted_and_resumes_from_the_one_before(run, tmp_path):
    """Three checkpoints: of the newest a bit is flipped, a pickle lies in the one before, the third is good."""
    life = run.start()
    life.trains(3 * SAVE_FREQ + 5)
    life.hurt(signal.SIGKILL)
    life.ends()
    good, crafted, flipped = saved_steps(run.run_dir)[-3:]
    state = run.run_dir / f"global_step_{flipped}" / "state" / "rank_00001.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 4
    state.write_bytes(content)
    evil = pickle.dumps(Canary(tmp_path / "executed"))
    for name in ("state/.metadata", "state/rank_00002.pt", "optimizer.pt", "training_args.bin"):
        (run.run_dir / f"global_step_{crafted}" / name).write_bytes(evil)
    (run.run_dir / "pytorch_model.bin").write_bytes(evil)
    (run.run_dir / "training_args.bin").write_bytes(evil)

    life = run.goes_on()
    assert life.starts == [good]
    assert f"global_step_{flipped} is not usable and passed over: state/rank_00001.safetensors" in life.text
    for name in ("state/.metadata", "state/rank_00002.pt", "optimizer.pt", "training_args.bin"):
        assert name in life.text
    assert not (tmp_path / "executed").exists()
