"""GSM8K becomes parquet that SFT and RL read alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_preprocess import common
from data_preprocess.gsm8k import convert
from tests.assets import write_jsonl

REPOSITORY = Path(__file__).parents[3]
ROWS = [
    {"question": "How many apples?", "answer": "12 + 30 = <<12+30=42>>42\n#### 42"},
    {"question": "How much, in “dollars”?", "answer": "It says #### twice.\n#### 1,234,567"},
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "raw/train.jsonl", ROWS)
    write_jsonl(tmp_path / "raw/test.jsonl", ROWS[:1])
    return tmp_path / "raw"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_preprocess.gsm8k", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_columns_of_a_row(raw, tmp_path):
    assert convert(raw, tmp_path / "out") == {"train": 2, "test": 1}
    rows = pq.read_table(tmp_path / "out/train.parquet").to_pylist()
    instruction = ' Let\'s think step by step and output the final answer after "####".'
    prompt = [{"role": "user", "content": ROWS[1]["question"] + instruction}]
    assert rows[1] == {
        "data_source": "openai/gsm8k",
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "1234567"},
        "extra_info": {"split": "train", "index": 1, **ROWS[1]},
        "messages": [*prompt, {"role": "assistant", "content": ROWS[1]["answer"]}],
    }
    assert pq.read_table(tmp_path / "out/test.parquet").to_pylist()[0]["extra_info"]["split"] == "test"


def test_parquet_is_read_where_there_is_no_jsonl(raw, tmp_path):
    convert(raw, tmp_path / "from_jsonl")
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(ROWS if split == "train" else ROWS[:1]), raw / f"{split}.parquet")
        (raw / f"{split}.jsonl").unlink()
    convert(raw, tmp_path / "from_parquet")
    for name in ("train.parquet", "test.parquet"):
        assert pq.read_table(tmp_path / "from_parquet" / name) == pq.read_table(tmp_path / "from_jsonl" / name)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"question": "q", "answer": "no number"}, "test.jsonl:2: no final answer after '#### ' in 'no number'"),
        ({"question": "q", "answer": "empty\n####  "}, "test.jsonl:2: no final answer"),
        ({"question": "q"}, "test.jsonl:2: expected the texts question and answer"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(raw, tmp_path, bad, message):
    write_jsonl(raw / "test.jsonl", [ROWS[0], bad])
    done = run("--local_dataset_path", raw, "--local_dir", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_a_broken_line_and_a_missing_file_are_named(raw, tmp_path):
    (raw / "train.jsonl").write_text('{"question": ')
    with pytest.raises(ValueError, match=r"train\.jsonl:1: not JSON"):
        convert(raw, tmp_path / "out")
    with pytest.raises(ValueError, match=r"neither train\.jsonl nor train\.parquet; check --local_dataset_path"):
        convert(tmp_path / "nowhere", tmp_path / "out")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(raw, tmp_path, monkeypatch):
    convert(raw, tmp_path / "out")
    before = (tmp_path / "out/train.parquet").read_bytes()

    def write_half(table, path):
        Path(path).write_bytes(b"PAR1")
        raise OSError("disk full")

    monkeypatch.setattr(common.pq, "write_table", write_half)
    with pytest.raises(OSError, match="disk full"):
        convert(raw, tmp_path / "out")
    assert (tmp_path / "out/train.parquet").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test.parquet", "train.parquet"]


def test_the_hub_needs_datasets(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        convert(None, tmp_path)


def test_it_imports_nothing_of_the_trainer():
    program = (
        "import sys, data_preprocess.gsm8k; loaded = {name.partition('.')[0] for name in sys.modules}; "
        "sys.exit(bool(loaded & {'sft', 'torch', 'datasets'}))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0


@pytest.mark.shared_data
def test_all_of_gsm8k(shared, tmp_path):
    done = run("--local_dataset_path", shared / "data/gsm8k", "--local_dir", tmp_path)
    assert done.stdout.splitlines() == [
        f"{tmp_path / 'train.parquet'}: 7473 rows",
        f"{tmp_path / 'test.parquet'}: 1319 rows",
    ]
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert [row["extra_info"]["index"] for row in rows] == list(range(7473))
    assert all(row["messages"][:-1] == row["prompt"] for row in rows)
    assert all(row["messages"][-1]["content"] == row["extra_info"]["answer"] for row in rows)
    for row in rows:
        float(row["reward_model"]["ground_truth"])  # raises unless it is a number
