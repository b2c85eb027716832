"""Whatever happens to the bytes of a checkpoint is found, named, and costs only that checkpoint."""

import json
import logging
import random
import shutil
from functools import partial

import pytest

from sft.checkpoint import differs_from_model, load, newest, verify
from sft.checkpoint.manifest import CheckpointError, digest_line
from tests.runs import ABOUT, names_in

FILES = ["state/rank_00000.safetensors", "state/rng_00000.safetensors", "huggingface/model.safetensors"]


@pytest.fixture
def two(run):
    """Checkpoints of steps 1 and 2, both BOTH."""
    for step in (1, 2):
        run.train_to(step)
        run.save("BOTH")
    return run


def test_200_flipped_bits_are_200_found(two):
    random.seed(0)
    checkpoint = two.dir / "global_step_2"
    for _ in range(200):
        name = random.choice(names_in(checkpoint))
        content = (checkpoint / name).read_bytes()
        bit = random.randrange(len(content) * 8)
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (checkpoint / name).write_bytes(flipped)
        named = "manifest.json" if name.startswith("manifest") else name
        assert verify(checkpoint, world=two.world) == [f"{named} is not what was written (sha256 differs)"]
        (checkpoint / name).write_bytes(content)
    assert verify(checkpoint, world=two.world) == []


def damage(checkpoint, kind, tmp_path):
    file = checkpoint / "state" / "rank_00000.safetensors"
    manifest = checkpoint / "manifest.json"
    facts = json.loads(manifest.read_text())
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif kind == "missing":
        file.unlink()
    elif kind == "swapped":
        shutil.copyfile(checkpoint.with_name("global_step_1") / "state" / file.name, file)
    elif kind == "linked":
        shutil.move(file, tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif kind == "linked checkpoint":
        shutil.move(checkpoint, tmp_path / "global_step_2")
        checkpoint.symlink_to(tmp_path / "global_step_2")
    elif kind == "no manifest":
        manifest.unlink()
    elif kind == "torn manifest":
        manifest.write_text(manifest.read_text()[:-30])
    elif kind in ("outside", "absolute"):  # by somebody who means harm, and so knows how to hash
        name = "/etc/hostname" if kind == "absolute" else "../global_step_1/manifest.json"
        facts["files"][name] = {"size": 1, "sha256": ""}
        manifest.write_text(json.dumps(facts))
        (checkpoint / "manifest.sha256").write_bytes(digest_line(manifest.read_bytes()))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("truncated", "rank_00000.safetensors has "),
        ("missing", "state/rank_00000.safetensors is missing"),
        ("swapped", "state/rank_00000.safetensors is not what was written"),
        ("linked", "state/rank_00000.safetensors is a symbolic link to "),
        ("linked checkpoint", "it is a symbolic link to "),
        ("no manifest", "manifest.json is missing"),
        ("torn manifest", "manifest.json is not what was written"),
        ("outside", "'../global_step_1/manifest.json' is no name that a checkpoint has"),
        ("absolute", "'/etc/hostname' is no name that a checkpoint has"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(two, tmp_path, caplog, monkeypatch, kind, named):
    monkeypatch.setattr(logging.getLogger("sft"), "propagate", True)
    damage(two.dir / "global_step_2", kind, tmp_path)
    assert newest(two.dir, world=two.world) == two.dir / "global_step_1"
    assert named in caplog.text and "global_step_2 is not usable" in caplog.text


def test_a_directory_that_is_no_longer_the_model_of_its_checkpoint_is_told_file_by_file(two, tmp_path):
    chosen = two.dir / "global_step_2"
    shutil.copytree(chosen / "huggingface", tmp_path / "root")
    differs = partial(differs_from_model, tmp_path / "root", chosen, world=two.world)
    assert differs(but=()) == []
    (tmp_path / "root" / "config.json").write_bytes(b"")
    (tmp_path / "root" / "model.safetensors").write_bytes(b"weightz")
    told = ["config.json has 0 bytes, 2 were written", "model.safetensors is not what was written (sha256 differs)"]
    assert differs(but=()) == told
    assert differs(but=("config.json",)) == told[1:]
    (chosen / "manifest.json").write_bytes(b"")
    assert differs(but=()) == [], "nobody knows any more"


def test_a_model_alone_is_nothing_to_resume_from(two, caplog):
    two.train_to(3)
    two.save("SAMPLER")
    assert newest(two.dir, world=two.world) == two.dir / "global_step_2"
    assert caplog.text == ""


def test_another_run_is_refused_with_the_difference_unless_forced(two, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sft"), "propagate", True)
    ours = ABOUT["fingerprint"] | {"seed": 7}
    arguments = (two.dir / "global_step_2", two.model, two.optimizer)
    with pytest.raises(CheckpointError, match=r"seed: the checkpoint has 1, this run 7[\s\S]*resume_force=true"):
        load(*arguments, world=two.world, fingerprint=ours)
    assert load(*arguments, world=two.world, fingerprint=ours, force=True).step == 2
    assert "seed: the checkpoint has 1, this run 7" in caplog.text


def test_weights_of_another_shape_are_named(two):
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Linear(9, 4))
    with pytest.raises(CheckpointError, match=r"another model: model/0.weight of shape \[9, 4\] is \[8, 4\] there"):
        load(
            two.dir / "global_step_2",
            model,
            torch.optim.AdamW(model.parameters()),
            world=two.world,
            fingerprint=ABOUT["fingerprint"],
        )
