"""checkpoints.jsonl: exactly the documented keys, whatever happened to the run that wrote it."""

import json

import pytest

from sft.checkpoint import prepare
from sft.checkpoint.ledger import read

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
