"""GSM8K becomes parquet that SFT and RL read alike."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.assets import write_jsonl

ROWS = [
    {"question": "How many apples?", "answer": "12 + 30 = <<12+30=42>>42\n#### 42"},
    {"question": "How much, in “dollars”?", "answer": "It says #### twice.\n#### 1,234,567"},
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "raw/train.jsonl", ROWS)
    write_jsonl(tmp_path / "raw/test.jsonl", ROWS[:1])
    return tmp_path / "raw"


def test_the_columns_of_a_row(raw, tmp_path, command):
    done = command("gsm8k", "--local_dataset_path", raw, "--local_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out/train.parquet").to_pylist()
    instruction = ' Let\'s think step by step and output the final answer after "####".'
    prompt = [{"role": "user", "content": ROWS[1]["question"] + instruction}]
    assert len(rows) == 2
    assert rows[1] == {
        "data_source": "openai/gsm8k",
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "1234567"},
        "extra_info": {"split": "train", "index": 1, **ROWS[1]},
        "messages": [*prompt, {"role": "assistant", "content": ROWS[1]["answer"]}],
    }
    assert [row["extra_info"]["split"] for row in pq.read_table(tmp_path / "out/test.parquet").to_pylist()] == ["test"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"question": "q", "answer": "no number"},
            "no final answer after '#### ' (first test.jsonl:2: found 'no number')",
        ),
        ({"question": "q", "answer": "empty\n####  "}, "no final answer after '#### ' (first test.jsonl:2: "),
        ({"question": "q"}, "no column 'answer' (first test.jsonl:2: found ['question'])"),
        ({"question": "q", "answer": None}, "column 'answer' is not text (first test.jsonl:2: found None)"),
        ({"question": " ", "answer": "#### 1"}, "column 'question' is empty (first test.jsonl:2: found ' ')"),
    ],
)
def test_a_bad_row_is_dropped_by_name_or_refused(raw, tmp_path, command, bad, message):
    write_jsonl(raw / "test.jsonl", [ROWS[0], bad, ROWS[1]])
    arguments = ["--local_dataset_path", raw, "--local_dir", tmp_path / "out"]
    strict = command("gsm8k", *arguments, "--strict")
    assert strict.returncode == 2
    assert strict.stderr.startswith(f"error: test: unusable 1: {message}")
    assert not (tmp_path / "out").exists()
    done = command("gsm8k", *arguments)
    assert done.returncode == 0
    said = done.stdout.splitlines()
    assert said[1] == "test: 3 rows read, 1 dropped"
    assert said[2].startswith(f"  dropped 1: {message}")
    rows = pq.read_table(tmp_path / "out/test.parquet").to_pylist()
    assert [row["extra_info"]["index"] for row in rows] == [0, 2]  # as in the source


@pytest.mark.shared_data
def test_all_of_gsm8k(shared, tmp_path, command):
    done = command("gsm8k", "--local_dataset_path", shared / "data/gsm8k", "--local_dir", tmp_path)
    assert done.stdout.splitlines() == [
        "train: 7473 rows read, 0 dropped",
        "test: 1319 rows read, 0 dropped",
        f"{tmp_path / 'train.parquet'}: 7473 rows",
        f"{tmp_path / 'test.parquet'}: 1319 rows",
    ]
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert [row["extra_info"]["index"] for row in rows] == list(range(7473))
    assert all(row["messages"][:-1] == row["prompt"] for row in rows)
    assert all(row["messages"][-1]["content"] == row["extra_info"]["answer"] for row in rows)
    for row in rows:
        float(row["reward_model"]["ground_truth"])  # raises unless it is a number
