"""What may be deleted is deleted; what somebody may still want never is."""

import json
import shutil
import threading
import time
from datetime import datetime
from types import SimpleNamespace

from sft.checkpoint import forget_after, mark_best, mend_best, prepare, start_over
from sft.checkpoint.promote import promote
from sft.checkpoint.tidy import delete
from tests.runs import start_run, write_model


def steps_of(run_dir):
    return sorted(int(path.name.rpartition("_")[2]) for path in run_dir.glob("global_step_*"))


def hidden(run_dir):
    return [path.name for path in run_dir.glob(".global*")]


def save_steps(run, kinds):
    for step, kind in kinds.items():
        run.train_to(step)
        run.save(kind)


def test_the_newest_are_kept(tmp_path, world_of_one):
    run = start_run(tmp_path / "job", world_of_one, keep=2)
    save_steps(run, dict.fromkeys((1, 2, 3, 4), "STATE"))
    assert steps_of(run.dir) == [3, 4]


def test_training_does_not_wait_until_the_old_one_is_deleted(tmp_path, world_of_one, monkeypatch):
    may_delete = threading.Event()

    def delete_late(directories):
        may_delete.wait(10)
        delete(directories)

    monkeypatch.setattr("sft.checkpoint.commit.delete", delete_late)
    run = start_run(tmp_path / "job", world_of_one, keep=1)
    run.train_to(1)
    run.save("STATE", wait=False)
    run.train_to(2)
    threading.Timer(0.1, may_delete.set).start()
    run.save("STATE", wait=False)  # commits the first, which replaces nothing
    may_delete.clear()
    run.saver.settle()
    assert steps_of(run.dir) == [2] and hidden(run.dir) == [".global_step_1.deleted"]
    may_delete.set()


def test_the_room_of_the_old_one_is_there_when_the_next_begins(tmp_path, world_of_one, monkeypatch):
    monkeypatch.setattr("sft.checkpoint.commit.delete", lambda directories: (time.sleep(0.1), delete(directories)))
    run, seen = start_run(tmp_path / "job", world_of_one, keep=1), []
    save_steps(run, {1: "STATE"})
    run.train_to(2)
    run.save("STATE", wait=False)
    run.train_to(3)
    run.saver.save(
        "SAMPLER",
        run.state,
        run.model,
        run.optimizer,
        write_model=lambda target: (seen.extend(hidden(run.dir)), write_model(target)),
    )
    assert seen == [".global_step_3.partial"]
    save_steps(run, {4: "STATE"})
    assert hidden(run.dir) == []  # a save that training waits for leaves nothing to be done


def test_what_cannot_be_deleted_is_said_and_is_no_end(tmp_path, world_of_one, monkeypatch, caplog):
    rmtree = shutil.rmtree

    def refuse(path, **options):
        if path.name.endswith(".deleted"):
            raise PermissionError(13, "Permission denied")
        rmtree(path, **options)

    run = start_run(tmp_path / "job", world_of_one, keep=1)
    with monkeypatch.context() as patch, caplog.at_level("WARNING", logger="sft"):
        patch.setattr("shutil.rmtree", refuse)
        save_steps(run, {1: "STATE", 2: "STATE"})
    assert steps_of(run.dir) == [2] and hidden(run.dir) == [".global_step_1.deleted"]
    assert ".global_step_1.deleted is not needed any more and cannot be deleted: [Errno 13]" in caplog.text
    save_steps(run, {3: "STATE"})
    assert hidden(run.dir) == []


def test_keeping_survives_a_resume(tmp_path, world_of_one):
    save_steps(start_run(tmp_path / "job", world_of_one, keep=2), {1: "STATE", 2: "STATE"})
    again = start_run(tmp_path / "job", world_of_one, keep=2)
    save_steps(again, {3: "STATE"})
    assert steps_of(again.dir) == [2, 3]


def test_the_newest_that_can_be_resumed_outlives_models(tmp_path, world_of_one):
    run = start_run(tmp_path / "job", world_of_one, keep=1)
    save_steps(run, {1: "STATE", 2: "SAMPLER", 3: "SAMPLER"})
    assert steps_of(run.dir) == [1, 3]


def test_the_best_and_the_promoted_stay(tmp_path, world_of_one):
    run = start_run(tmp_path / "job", world_of_one)
    save_steps(run, {1: "BOTH", 2: "BOTH"})
    promote(run.dir / "checkpoints.jsonl", step=1)
    mark_best(run.dir, 1)
    mark_best(run.dir, 2)
    later = start_run(tmp_path / "job", world_of_one, keep=1)
    save_steps(later, {3: "STATE", 4: "STATE", 5: "STATE"})
    assert steps_of(run.dir) == [1, 2, 5]


def test_the_best_leads_somewhere_after_going_back(run):
    save_steps(run, {1: "BOTH", 2: "BOTH"})
    mark_best(run.dir, 2)
    mend_best(run.dir, -1, wanted=False)
    assert (run.dir / "best").resolve().name == "global_step_2"  # it is there: nothing to mend
    forget_after(run.dir, 1)
    mend_best(run.dir, 1, wanted=False)
    assert (run.dir / "best").resolve() == (run.dir / "global_step_1").resolve()
    forget_after(run.dir, 0)
    mend_best(run.dir, -1, wanted=False)
    assert not (run.dir / "best").is_symlink()


def test_a_best_model_that_a_kill_left_without_its_mark_gets_it(run):
    save_steps(run, {1: "BOTH", 2: "STATE", 3: "BOTH"})
    mend_best(run.dir, 1, wanted=False)
    assert not (run.dir / "best").is_symlink()
    for best, marked in ((1, 1), (2, 1), (3, 3)):  # step 2 has no model to load
        mend_best(run.dir, best, wanted=True)
        assert (run.dir / "best").resolve().name == f"global_step_{marked}"


def test_leftovers_of_a_killed_run_are_gone_after_the_next_save(run):
    for name in (".global_step_1.partial", ".global_step_1.deleted", ".global_step_1.replaced"):
        (run.dir / name / "state").mkdir(parents=True)
    save_steps(run, {2: "STATE"})
    assert [path.name for path in run.dir.glob(".global*")] == []


def test_a_checkpoint_killed_between_two_names_gets_its_own_back(run):
    save_steps(run, {1: "STATE"})
    (run.dir / "global_step_1").rename(run.dir / ".global_step_1.replaced")
    prepare(run.dir)
    assert steps_of(run.dir) == [1]


def test_starting_over_takes_the_run_and_leaves_what_was_promoted(run):
    save_steps(run, {1: "BOTH"})
    promote(run.dir / "checkpoints.jsonl", model_id="mine")
    start_over(run.dir)
    assert sorted(path.name.split("_")[0] for path in run.dir.iterdir()) == ["promoted", "superseded"]
    assert json.loads((run.dir / "promoted/mine/promotion.json").read_text())["step"] == 1


def test_going_back_sets_everything_later_aside(run):
    save_steps(run, {1: "STATE", 2: "SAMPLER", 3: "STATE"})
    forget_after(run.dir, 1)
    assert steps_of(run.dir) == [1]
    (aside,) = run.dir.glob("superseded_*")
    assert sorted(path.name for path in aside.iterdir()) == ["global_step_2", "global_step_3"]


def test_what_is_set_aside_twice_in_a_second_lies_in_two_places(run, monkeypatch):
    monkeypatch.setattr("sft.checkpoint.tidy.datetime", SimpleNamespace(now=lambda: datetime(2026, 11, 28)))
    for _ in range(3):
        save_steps(run, {1: "STATE"})
        start_over(run.dir)
    asides = sorted(run.dir.glob("superseded_*"))
    assert [aside.name for aside in asides] == [f"superseded_20261128T000000{end}" for end in ("", "_2", "_3")]
    assert all((aside / "global_step_1" / "manifest.json").exists() for aside in asides)


def test_files_that_were_to_replace_others_are_removed_and_those_of_somebody_else_stay(run):
    save_steps(run, {1: "STATE"})
    left, others = [".config.yaml.4711.partial", ".best.partial"], [".mine.partial", ".config.yaml.4711"]
    for name in left + others:
        (run.dir / name).write_text("half")
    (run.dir / ".dir.1.partial").mkdir()
    prepare(run.dir)
    assert sorted(path.name for path in run.dir.glob(".*") if path.name != ".lock") == sorted(
        [*others, ".dir.1.partial"]
    )
