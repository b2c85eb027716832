"""checkpoints.jsonl: exactly the documented keys, whatever happened to the run that wrote it."""

import json

import pytest

from sft.checkpoint import prepare
from sft.checkpoint.ledger import read
from sft.checkpoint.manifest import CheckpointError
from sft.checkpoint.promote import promote

COMMON = ["name", "step", "data_consumed"]
ORIGIN = ["source_job_id", "base_model"]


@pytest.mark.parametrize(
    ("kind", "paths"),
    [("STATE", ["state_path"]), ("SAMPLER", ["sampler_path"]), ("BOTH", ["state_path", "sampler_path"])],
    ids=lambda value: str(value),
)
def test_keys_stand_in_the_documented_order(run, kind, paths):
    run.train_to(4)
    run.save(kind)
    line = (run.dir / "checkpoints.jsonl").read_text()
    assert [key for key, _ in json.loads(line, object_pairs_hook=list)] == [*COMMON, *paths, *ORIGIN]
    entry = json.loads(line)
    assert entry["name"] == "step-4" and entry["data_consumed"] == 32 and entry["source_job_id"] == "job"
    assert all((run.dir / entry[path]).is_dir() for path in paths)


def test_bytes_of_a_line(run):
    run.train_to(4)
    run.save("BOTH")
    assert (run.dir / "checkpoints.jsonl").read_bytes() == (
        b'{"name": "step-4", "step": 4, "data_consumed": 32, "state_path": "global_step_4/state", "sampler_path": '
        b'"global_step_4/huggingface", "source_job_id": "job", "base_model": "org/base"}\n'
    )


def test_a_torn_line_stays_alone_and_is_passed_over(run):
    ledger = run.dir / "checkpoints.jsonl"
    for step in (1, 2):
        run.train_to(step)
        run.save("STATE")
    ledger.write_bytes(ledger.read_bytes()[:-40])
    run.train_to(3)
    run.save("STATE")
    entries, problems = read(ledger)
    assert [entry["step"] for entry in entries] == [1, 3]
    assert len(problems) == 1 and problems[0].startswith("checkpoints.jsonl:2 is no entry")


def test_a_line_missing_after_the_commit_is_added_at_the_next_start(run):
    ledger = run.dir / "checkpoints.jsonl"
    for step in (1, 2):
        run.train_to(step)
        run.save("STATE")
    before = ledger.read_bytes()
    ledger.write_bytes(before[:-40])
    prepare(run.dir)
    assert [entry["step"] for entry in read(ledger)[0]] == [1, 2]
    assert ledger.read_bytes().endswith(before.splitlines(keepends=True)[1])
    prepare(run.dir)
    assert ledger.read_bytes().count(b"\n") == 3, "added once"


FOREIGN = [
    b"null",
    b"[1, 2]",
    b"7",
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"name": ["step-1"], "step": 1}',
    b'{"name": "step-1", "step": "1"}',
    b'{"name": "step-1", "step": true}',
    b'{"name": "step-1", "step": 1e400}',
    b'{"name": "step-1", "step": 1, "sampler_path": 3}',
]
ENTRY = {"name": "step-1", "step": 1, "data_consumed": 8, "source_job_id": "job", "base_model": "org/base"}
LEADS_AWAY = ["/etc", "../other/global_step_1/huggingface", "global_step_2/huggingface", "global_step_1/../../x", ""]


def test_foreign_lines_are_passed_over_and_named(run):
    ledger = run.dir / "checkpoints.jsonl"
    run.train_to(1)
    run.save("BOTH")
    ours = ledger.read_bytes()
    away = [json.dumps(ENTRY | {"sampler_path": path}).encode() for path in LEADS_AWAY]
    ledger.write_bytes(ours + b"\n".join([*FOREIGN, *away]) + b"\n")
    entries, problems = read(ledger)
    assert entries == [json.loads(ours)]
    assert len(problems) == len(FOREIGN) + len(away)
    prepare(run.dir)
    assert promote(ledger).name == "job-step-1", "the entry that is ours"


def test_a_directory_of_that_name_stops_nothing(run, caplog):
    (run.dir / "checkpoints.jsonl").mkdir()
    run.train_to(1)
    run.save("STATE")
    prepare(run.dir)
    assert (run.dir / "global_step_1").is_dir()


def test_a_checkpoint_that_is_a_link_out_of_the_run_is_not_promoted(run, tmp_path):
    run.train_to(1)
    run.save("BOTH")
    moved = (run.dir / "global_step_1").rename(tmp_path / "elsewhere")
    (run.dir / "global_step_1").symlink_to(moved)
    with pytest.raises(CheckpointError, match="leads out of the run"):
        promote(run.dir / "checkpoints.jsonl")
