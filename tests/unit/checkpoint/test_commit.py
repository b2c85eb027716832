"""A checkpoint is written aside, whole, and never changed; its state is that of the moment it was asked for."""

import hashlib
import json
import threading
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft.checkpoint import load
from sft.checkpoint.commit import MOST_OF_MEMORY
from sft.checkpoint.state import state_bytes
from sft.errors import InputError
from sft.types import TrainState
from tests.runs import ABOUT, names_in, small_model, start_run

STATE = ["state/rank_00000.safetensors", "state/rng_00000.safetensors"]
MANIFEST = ["manifest.json", "manifest.sha256"]
MODEL = ["huggingface/config.json", "huggingface/model.safetensors"]


def loaded(checkpoint, world):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state = load(checkpoint, model, optimizer, world=world, fingerprint=ABOUT["fingerprint"])
    return model, optimizer, state


def digests(directory):
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names_in(directory)}


@pytest.mark.parametrize(
    ("kind", "files"), [("STATE", STATE), ("SAMPLER", MODEL), ("BOTH", MODEL + STATE)], ids=lambda value: str(value)
)
def test_each_kind_holds_its_files_and_a_manifest_that_lists_them(run, kind, files):
    run.train_to(3)
    checkpoint = run.save(kind)
    assert checkpoint == run.dir / "global_step_3"
    assert names_in(checkpoint) == sorted([*files, *MANIFEST])
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert sorted(manifest["files"]) == sorted(files) and manifest["kind"] == kind
    assert manifest["files"][files[0]]["sha256"] == hashlib.sha256((checkpoint / files[0]).read_bytes()).hexdigest()
    assert manifest["state"]["samples_seen"] == 24


def test_training_may_go_on_while_a_checkpoint_is_written(run, monkeypatch):
    run.train_to(2)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    assert run.save("STATE", wait=False) is None
    assert run.saver.has_begun and not (run.dir / "global_step_2").exists()
    run.train_to(5)
    assert run.saver.settle() == run.dir / "global_step_2" and not run.saver.has_begun
    model, optimizer, state = loaded(run.dir / "global_step_2", run.world)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert state == TrainState(step=2, updates=2, samples_seen=16)
    assert next(iter(optimizer.state.values()))["step"] == 2
    assert (run.dir / "checkpoints.jsonl").read_text().count("\n") == 1


def test_a_copy_is_not_written_over_before_it_is_on_the_disk(run, monkeypatch):
    """The second save begins while the thread has not written a byte of the first, and uses the same memory."""
    written, may_write = [], threading.Event()

    def write_late(tensors, file, metadata=None):
        may_write.wait(10)
        written.append({name: tensor.data_ptr() for name, tensor in tensors.items()})
        save_file(tensors, file, metadata)

    monkeypatch.setattr("sft.parallel.shards.save_file", write_late)
    run.train_to(1)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    run.save("STATE", wait=False)
    run.train_to(2)
    threading.Timer(0.2, may_write.set).start()
    run.save("STATE", wait=False)
    run.saver.settle()
    model, *_ = loaded(run.dir / "global_step_1", run.world)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    later, *_ = loaded(run.dir / "global_step_2", run.world)
    assert all(torch.equal(weight, run.model.state_dict()[name]) for name, weight in later.state_dict().items())
    assert written[0] == written[1]


@pytest.mark.parametrize("in_background", [True, False])
def test_memory_is_kept_only_where_saves_go_on_in_the_background(tmp_path, world_of_one, monkeypatch, in_background):
    written = []

    def note(tensors, file, metadata=None):
        written.extend(weakref.ref(tensor) for tensor in tensors.values())
        save_file(tensors, file, metadata)

    monkeypatch.setattr("sft.parallel.shards.save_file", note)
    run = start_run(tmp_path / "job", world_of_one, in_background=in_background)
    run.train_to(1)
    run.save("STATE")
    assert written and [tensor() is not None for tensor in written] == [in_background] * len(written)


def test_both_ways_write_the_same_bytes(tmp_path, world_of_one):
    runs = [start_run(tmp_path / str(way), world_of_one, in_background=way) for way in (True, False)]
    for run in runs:
        for step in (1, 2):
            torch.manual_seed(step)
            run.train_to(step)
            run.save("STATE", wait=False)
        run.saver.settle()
    for name in ("global_step_1", "global_step_2"):
        assert len({(run.dir / name / STATE[0]).read_bytes() for run in runs}) == 1


def test_the_next_save_commits_the_one_before(run):
    for step in (1, 2):
        run.train_to(step)
        run.save("STATE", wait=False)
    assert (run.dir / "global_step_1").is_dir() and not (run.dir / "global_step_2").exists()


def test_what_is_there_already_is_left_alone(run):
    run.train_to(1)
    checkpoint = run.save("BOTH")
    before = digests(checkpoint)
    run.model[0].weight.data.zero_()
    assert run.save("STATE") == run.save("SAMPLER") == run.save("BOTH") == checkpoint
    assert digests(checkpoint) == before
    assert (run.dir / "checkpoints.jsonl").read_text().count("\n") == 1


def test_the_same_kind_again_stays_that_kind(run):
    run.train_to(1)
    assert names_in(run.save("STATE")) == names_in(run.save("STATE")) == sorted([*STATE, *MANIFEST])


def test_a_kind_that_lacks_something_is_replaced_by_both(run):
    run.train_to(1)
    run.save("STATE")
    checkpoint = run.save("SAMPLER")
    assert names_in(checkpoint) == sorted([*MODEL, *STATE, *MANIFEST])
    assert [path.name for path in run.dir.glob(".global*")] == []
    lines = [json.loads(line) for line in (run.dir / "checkpoints.jsonl").read_text().splitlines()]
    assert [line.keys() >= {"state_path", "sampler_path"} for line in lines] == [False, True]


@pytest.mark.parametrize("kind", ["STATE", "BOTH"])
def test_a_rank_that_cannot_write_leaves_no_checkpoint_and_the_last_one_whole(run, monkeypatch, kind):
    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    run.train_to(1)
    run.save("STATE")
    before = digests(run.dir)
    run.train_to(2)
    monkeypatch.setattr("sft.parallel.shards.save_file", disk_full)
    with pytest.raises(InputError, match=r"saving .*global_step_2 failed: rank 0: .*No space left"):
        run.save(kind)
    assert digests(run.dir) == before
    monkeypatch.undo()
    assert run.save(kind) == run.dir / "global_step_2"


def test_a_state_without_room_in_memory_is_saved_while_training_waits(tmp_path, world_of_one, monkeypatch, caplog):
    run = start_run(tmp_path / "run", world_of_one)
    run.train_to(1)
    needed = state_bytes(run.model, run.optimizer, run.state.updates)
    free = int(needed / MOST_OF_MEMORY) + 1
    for short, has_room in ((0, True), (2, False)):
        run = start_run(tmp_path / str(short), world_of_one)
        monkeypatch.setattr("sft.checkpoint.commit.available_bytes", lambda short=short: free - short)
        caplog.clear()
        for step in (1, 2):
            run.train_to(step)
            assert (run.save("STATE", wait=False) is None) == has_room
        run.saver.settle()
        told = [line for line in caplog.messages if "checkpoints are written while training waits" in line]
        assert len(told) == (0 if has_room else 1)
        state = load_file(run.dir / "global_step_2" / STATE[0])
        assert sum(tensor.nbytes for tensor in state.values()) == needed
