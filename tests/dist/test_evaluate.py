"""python -m sft.evaluate: the numbers of training's validation, and the answers of the model that came out."""

from __future__ import annotations

import json

import pytest

from tests.assets import write_jsonl
from tests.launch import read_metrics, succeed, train

EVALUATE = {"module": "sft.evaluate"}


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """(the overrides of a finished run on two ranks and two validation files, its directory)."""
    home = tmp_path_factory.mktemp("evaluate")
    rows = [{"question": f"What is {k} + {k * 37}?", "answer": f"{k * 38}. " * (1 + k)} for k in range(5)]
    files = [write_jsonl(home / "one.jsonl", rows[:2]), write_jsonl(home / "two.jsonl", rows[2:])]
    overrides = [
        *base,
        f"data.val_files=[{files[0]},{files[1]}]",
        "use_remove_padding=true",
        "trainer.test_freq=-1",
        "trainer.total_training_steps=6",
        f"trainer.default_local_dir={home / 'run'}",
    ]
    succeed(overrides, ranks=2, cwd=home)
    return overrides, home / "run"


def test_the_same_overrides_give_the_numbers_of_training(finished, tmp_path):
    overrides, run_dir = finished
    more = [f"model.partial_pretrain={run_dir}", "+evaluate.generate=true", "+evaluate.max_new_tokens=8"]
    files = [f"+evaluate.out={tmp_path / 'out.jsonl'}", f"+evaluate.metrics={tmp_path / 'metrics.json'}"]
    done = succeed([*overrides, *more, *files], ranks=2, cwd=tmp_path, **EVALUATE)
    found = json.loads((tmp_path / "metrics.json").read_text())
    trained = read_metrics(run_dir)[-1]
    for key in ("loss", "perplexity", "token_accuracy"):
        assert found["all"][key] == trained[f"val/{key}"]
    assert [found[name]["loss"] for name in ("one", "two")] == [trained[f"val/loss/{n}"] for n in ("one", "two")]
    assert f"all: loss={found['all']['loss']:.6g} perplexity=" in done.stdout and "(5 answers)" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "out.jsonl"]

    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["row"] for line in answers] == ["one.jsonl:1", "one.jsonl:2", *(f"two.jsonl:{n}" for n in (1, 2, 3))]
    assert answers[0]["prompt"].endswith("<|im_start|>assistant\n") and answers[1]["expected"] == "38. " * 2
    alone = succeed([*overrides, *more, f"+evaluate.out={tmp_path / 'alone.jsonl'}"], ranks=0, cwd=tmp_path, **EVALUATE)
    assert (tmp_path / "alone.jsonl").read_text() == (tmp_path / "out.jsonl").read_text()
    assert f"exact_match={sum(line['correct'] for line in answers) / 5:.6g}" in alone.stdout


def test_a_row_without_an_answer_is_named(finished, tmp_path):
    overrides, run_dir = finished
    chats = [{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}] * 2
    text = write_jsonl(tmp_path / "text.jsonl", [{"text": "words words"}])
    more = [f"model.partial_pretrain={run_dir}", "+evaluate.generate=true", "data.format=auto"]
    files = f"data.val_files=[{write_jsonl(tmp_path / 'chats.jsonl', chats)},{text}]"
    done = train([*overrides, *more, files], ranks=0, cwd=tmp_path, **EVALUATE)
    assert done.returncode == 2 and "1 of 3 rows have no answer to compare with" in done.stderr
    assert "text.jsonl:1: plain text asks nothing" in done.stderr and "data.bad_rows=drop" in done.stderr
    short = [*overrides, *more, files, "data.bad_rows=drop", "+evaluate.max_new_tokens=2"]
    done = succeed(short, ranks=0, cwd=tmp_path, **EVALUATE)
    assert "chats: loss=" in done.stdout and "(2 answers)" in done.stdout


def test_what_cannot_be_evaluated_is_refused_with_a_way_out(finished, tmp_path):
    overrides, _ = finished
    done = train([*overrides, "+evaluate.genarate=true", "+evaluate.out=x"], ranks=0, cwd=tmp_path, **EVALUATE)
    assert done.returncode == 2 and "did you mean evaluate.generate?" in done.stderr
    done = train([*overrides, "data.val_files=null"], ranks=0, cwd=tmp_path, **EVALUATE)
    assert done.returncode == 2 and "nothing to evaluate on" in done.stderr
