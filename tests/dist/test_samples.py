"""Samples during training: the answers of the model as it stands, on any split, without a trace in what it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.assets import write_jsonl
from tests.launch import succeed

SAMPLES = ["trainer.generate_freq=8", "trainer.generate_samples=3", "trainer.generate_max_new_tokens=12"]


def curve(metrics: list[dict]) -> list[float]:
    return [value for line in metrics for value in (line["train/loss"], line["train/grad_norm"])]


def samples(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]


def answers_of(run_dir: Path, prompts: list[str]) -> list[str]:
    """What transformers alone makes of the exported model."""
    tokenizer = AutoTokenizer.from_pretrained(run_dir)
    model = AutoModelForCausalLM.from_pretrained(run_dir, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=12, do_sample=False)
        answers.append(tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("kind", ["plain", "lora"])
def test_answers_are_those_of_the_exported_model_and_losses_do_not_change(base, run_all, tmp_path, kind):
    """Padded and packed rows, one rank and two, a row that two ranks share: 3 prompts are no even share of 2 ranks."""
    lora = ["model.lora_rank=4", "model.lora_dropout=0.1"] if kind == "lora" else []
    run = [*base, *lora, "trainer.total_training_steps=20"]
    packed = "use_remove_padding=true"
    layouts = [[], [packed], [packed, "ulysses_sequence_parallel_size=2"]]
    with_samples = run_all([[*run, *SAMPLES, *layout] for layout in layouts], 2)
    without = run_all([[*run, *layout] for layout in layouts], 2)
    assert [curve(metrics) for metrics in with_samples] == [curve(metrics) for metrics in without]
    alone = run_all([[*run, *SAMPLES, packed]], 1)
    assert len(alone[0]) == 20

    for run_dir in [*(tmp_path / "call_0").glob("run_*"), tmp_path / "call_2" / "run_0"]:
        found = samples(run_dir)
        assert [line["step"] for line in found] == [step for step in (8, 16, 20) for _ in range(3)]
        last = found[-3:]
        assert [line["row"] for line in last] == ["val.jsonl:1", "val.jsonl:2", "val.jsonl:3"]
        assert last[1]["expected"] == "38. " * 2 and last[1]["prompt"].endswith("<|im_start|>assistant\n")
        assert any(line["answer"] for line in last)
        assert [line["answer"] for line in last] == answers_of(run_dir, [line["prompt"] for line in last])
        assert "samples after step 20:\n" in (run_dir / "training.log").read_text()


def test_a_metric_is_that_of_evaluate_on_any_ranks(base, run_all, tmp_path):
    function = tmp_path / "mine.py"
    function.write_text(
        "def shares(answer, expected):\n    return len(set(answer) & set(expected)) / (1 + len(answer))\n"
    )
    graded = [
        *(
            f"trainer.generate_metric={function}:shares",
            "trainer.generate_samples=7",
            "trainer.generate_max_new_tokens=12",
        ),
        *("trainer.test_freq=8", "trainer.early_stop_metric=val/shares", "trainer.save_best=true"),
    ]
    run = [*base, *graded, "trainer.total_training_steps=16"]
    shared = ["use_remove_padding=true", "ulysses_sequence_parallel_size=2"]
    two_ranks = run_all([run, [*run, *shared]], 2)
    one_rank = run_all([run], 1)
    found = [[line["val/shares"] for line in metrics if "val/shares" in line] for metrics in (*two_ranks, *one_rank)]
    assert found[0] == found[1] == found[2] and len(found[0]) == 2
    assert len(set(found[0])) == 2 and 0 < max(found[0]) < 1, "a metric that never moves would prove nothing"

    run_dir, numbers = tmp_path / "call_0" / "run_0", tmp_path / "numbers.json"
    evaluate = [str(run_dir), "+evaluate.generate=true", "+evaluate.max_new_tokens=12", f"+evaluate.metrics={numbers}"]
    succeed(evaluate, ranks=0, cwd=tmp_path, module="sft.evaluate")
    assert json.loads(numbers.read_text())["val"]["shares"] == found[0][-1]
    scores = [line["score"] for line in samples(run_dir) if line["step"] == 16]
    assert len(scores) == 7 and sum(scores) / 7 == found[0][-1]
    log = (run_dir / "training.log").read_text()
    assert f"val/shares={found[0][-1]:.4f}: 7 answers of at most 12 tokens in " in log
    best = 8 if found[0][0] >= found[0][1] else 16
    assert (run_dir / "best").readlink().name == f"global_step_{best}"


def test_a_resumed_run_goes_the_same_way_and_holds_each_sample_once(base, tmp_path):
    samples_often = [*SAMPLES, "trainer.generate_freq=2"]
    run = [
        *base,
        *samples_often,
        "trainer.total_training_steps=6",
        "trainer.save_freq=3",
        "trainer.default_local_dir=run",
    ]
    (tmp_path / "straight").mkdir()
    succeed(run, ranks=2, cwd=tmp_path / "straight")
    (tmp_path / "resumed").mkdir()
    succeed(run, ranks=2, cwd=tmp_path / "resumed")
    run_dir = tmp_path / "resumed" / "run"
    for trace in ("global_step_6", "config.json", "run.json"):  # as if it had been killed in step 6
        remove(run_dir / trace)
    succeed(run, ranks=2, cwd=tmp_path / "resumed")
    assert samples(run_dir) == samples(tmp_path / "straight" / "run")
    mine, straight = (
        [json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()]
        for d in (run_dir, tmp_path / "straight" / "run")
    )
    assert curve(mine) == curve(straight)


def remove(path: Path) -> None:
    if path.is_dir():
        path.rename(path.with_name(f"gone_{path.name}"))
    else:
        path.unlink()


def test_rows_that_ask_nothing_give_no_samples_and_that_is_said(base, tmp_path):
    write_jsonl(tmp_path / "text.jsonl", [{"text": "words " * 5}] * 4)
    run = [
        *base,
        *SAMPLES,
        "trainer.generate_freq=1",
        "data.val_files=null",
        f"data.train_files={tmp_path / 'text.jsonl'}",
    ]
    done = succeed([*run, "trainer.total_training_steps=2", "trainer.default_local_dir=run"], ranks=0, cwd=tmp_path)
    assert "text.jsonl:1: plain text asks nothing" in done.stdout and "the rows give 0 prompts" in done.stdout
    assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_a_prompt_that_training_would_not_compute_is_not_asked(base, tmp_path):
    rows = [{"question": "and so on " * 200, "answer": "No."}, {"question": "Why?", "answer": "So."}]
    files = [
        f"data.val_files={write_jsonl(tmp_path / 'val.jsonl', rows)}",
        "data.truncation=drop",
        "data.max_length=256",
    ]
    run = [*base, *SAMPLES, *files, "trainer.total_training_steps=1", "trainer.default_local_dir=run"]
    done = succeed(run, ranks=0, cwd=tmp_path)
    assert "1 rows give no prompt, the first because: val.jsonl:1: a prompt of" in done.stdout
    assert [line["row"] for line in samples(tmp_path / "run")] == ["val.jsonl:2"]
