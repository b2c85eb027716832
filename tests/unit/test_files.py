"""What is written durably is on the disk when the call returns: its bytes before its name, its name before the end."""

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import sft
from sft.errors import MishapError
from sft.files import (
    RunDir,
    append_whole,
    complaint_about_output,
    explaining_disk,
    finished,
    replace_file,
    step_of,
    sync_tree,
    unfinished,
    write_durably,
)
from sft.generate.ask import write_answers
from sft.inspect.lines import write_lines
from sft.inspect.page import write_page
from sft.inspect.tokens import SeenSample
from sft.track.files import MetricsFile, TrainingLog, append_line, read_metrics
from sft.track.run_log import RunLog
from sft.train.report import open_log
from tests.disk import Disk


@pytest.fixture
def disk(monkeypatch) -> Disk:
    return Disk(monkeypatch)


def test_a_file_is_on_the_disk_with_all_its_bytes(tmp_path, disk):
    write_durably(tmp_path / "file", b"content")
    assert disk.missing(tmp_path / "file") == []
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_file_is_replaced_by_one_that_is_on_the_disk_and_its_name_follows(tmp_path, disk):
    write_durably(tmp_path / "file", b"old")
    replace_file(tmp_path / "file", b"new")
    assert [(target, missing) for _, target, missing in disk.renames] == [("file", [])]
    assert disk.missing(tmp_path) == []
    assert disk.events[-2:] == ["rename file", f"fsync {tmp_path.name}"]


def test_a_tree_is_on_the_disk_with_all_its_names(tmp_path, disk):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"content")
    assert disk.missing(tmp_path / "a") == ["a", "b", "file"]
    sync_tree(tmp_path / "a")
    assert disk.missing(tmp_path / "a") == []


def test_a_run_directory_names_its_checkpoints_and_what_is_unfinished(tmp_path):
    run = RunDir(tmp_path)
    for step in (10, 9, 100):
        run.checkpoint(step).mkdir()
    (tmp_path / "global_step_final").mkdir()
    unfinished(run.checkpoint(11), "partial").mkdir()
    assert [path.name for path in run.checkpoints()] == ["global_step_9", "global_step_10", "global_step_100"]
    assert [step_of(path) for path in run.checkpoints()] == [9, 10, 100]
    assert run.unfinished("partial") == [tmp_path / ".global_step_11.partial"] and run.unfinished("replaced") == []
    assert finished(tmp_path / ".global_step_11.partial") == run.checkpoint(11)


def test_no_other_module_spells_the_name_of_a_checkpoint():
    spelled = re.compile(r"""f?"[^"]*global_step_(\{|\*|\\d)""")
    others = [path for path in Path(sft.__file__).parent.rglob("*.py") if path.name != "files.py"]
    assert not [str(path) for path in others if spelled.search(path.read_text())]


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let this process write files of at most so many bytes, as a quota or a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("mode", ["ab", "r+b"])
def test_a_line_that_has_no_room_leaves_the_lines_before_it(tmp_path, mode):
    path = tmp_path / "lines"
    path.touch()
    with path.open(mode, buffering=0) as file, files_limited_to(100):
        append_whole(file, b"a" * 59 + b"\n")
        with pytest.raises(OSError, match="too large"):
            append_whole(file, b"b" * 59 + b"\n")
        append_whole(file, b"c\n")
    assert path.read_bytes() == b"a" * 59 + b"\nc\n"


@pytest.mark.parametrize("size", [0, 1, 50, 100, 150, 200, 250, 300, 1000, 10_000])
def test_logs_and_metrics_on_a_full_disk_hold_whole_lines(tmp_path, size):
    metrics, log = MetricsFile(tmp_path / "metrics.jsonl", keep_up_to_step=0), TrainingLog(tmp_path / "training.log")
    with files_limited_to(size):
        for step in (1, 1, 2, 2, 3):  # training, and validation of the same step
            with suppress(OSError):
                metrics.log(step, {"train/loss": 1 / 3, "val/loss" if step < 3 else "train/lr": 0.1})
            with suppress(OSError):
                log.say("a line" * 10)
            with suppress(OSError):
                append_line(tmp_path / "skipped_steps.jsonl", "{}")
    metrics.close()
    log.close()
    records, unreadable = read_metrics(tmp_path / "metrics.jsonl")
    assert unreadable == 0 and [record["step"] for record in records] == [1, 2, 3][: len(records)]
    for file in tmp_path.iterdir():
        assert file.read_bytes()[-1:] in (b"", b"\n"), file
    assert len(records) == (3 if size >= 1000 else len(records))


def test_metrics_are_on_the_disk_when_asked_for(tmp_path, disk):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", keep_up_to_step=0)
    metrics.log(1, {"train/loss": 0.5})
    assert "metrics.jsonl" in disk.missing(tmp_path)
    RunLog(total_steps=1, log_freq=1, recorders={"metrics.jsonl": metrics}).sync()
    assert "metrics.jsonl" not in disk.missing(tmp_path)
    metrics.close()
    RunLog(total_steps=1, log_freq=1).sync()  # of a rank that logs nothing


def test_a_log_that_was_deleted_is_switched_off_with_a_warning(tmp_path):
    metrics, log = MetricsFile(tmp_path / "metrics.jsonl", keep_up_to_step=0), TrainingLog(tmp_path / "training.log")
    run_log = RunLog(total_steps=2, log_freq=1, recorders={"metrics.jsonl": metrics}, training_log=log)
    run_log.log(1, {"train/loss": 0.5})
    (tmp_path / "metrics.jsonl").unlink()
    run_log.log(2, {"train/loss": 0.5})
    run_log.log(3, {"train/loss": 0.5})
    run_log.close()
    said = (tmp_path / "training.log").read_text()
    assert said.count("metrics.jsonl is off for the rest of this run: FileNotFoundError(2, 'deleted while") == 1


def test_only_what_a_disk_says_is_explained(tmp_path):
    told = r"^a file cannot be written \(File too large\). Make room.$"
    with files_limited_to(0), pytest.raises(MishapError, match=told), explaining_disk("a file", "Make room."):
        (tmp_path / "a").write_text("b")
    with pytest.raises(FileNotFoundError), explaining_disk("a file", "Make room."):
        (tmp_path / "no" / "a").write_text("b")


def test_a_page_an_answer_or_a_listing_without_room_leaves_nothing(tmp_path):
    """What commands write is there whole or not at all."""
    with files_limited_to(0):
        for write in (
            lambda path: write_page(path, [], title="a", numbers=[], histograms={}),
            lambda path: write_answers(path, [[{"role": "user", "content": "a"}]], ["b"]),
            lambda path: write_lines(path, [SeenSample("a:1", 0, [])]),
        ):
            with pytest.raises(MishapError, match=r"cannot be written \(File too large\)"):
                write(tmp_path / "out")
            assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_write_its_config_says_so_on_all_ranks(tmp_path, world_of_one, monkeypatch):
    job = SimpleNamespace(run_dir=tmp_path, config=SimpleNamespace(trainer=None), world=world_of_one)
    monkeypatch.setattr("sft.train.report.config_to_yaml", lambda config: "a: 1")
    with files_limited_to(0), pytest.raises(MishapError, match=r"writing .*config.yaml failed: rank 0: .*too large"):
        open_log(cast("Any", job))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, None),
        (lambda path: path.touch(), None),
        (lambda path: path.mkdir(), "must be a file in a directory that exists"),
        (os.mkfifo, "is a pipe"),
        (lambda path: path.symlink_to("/dev/null"), "is a device"),  # as /dev/stdout is a link to what it is
        (lambda path: path.symlink_to("/not/there"), "is a link to /not/there, which does not exist"),
        (lambda path: path.parent.rmdir(), "must be a file in a directory that exists"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_at_the_start(tmp_path, make, complaint):
    (tmp_path / "for").mkdir()
    make(tmp_path / "for" / "answers.jsonl")
    assert complaint_about_output(tmp_path / "for" / "answers.jsonl") == complaint


def test_an_output_in_a_directory_of_somebody_else_is_told_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    told = f"cannot be made: {tmp_path} cannot be written by this user"
    assert complaint_about_output(tmp_path / "answers.jsonl") == told
