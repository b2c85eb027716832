"""data.val_fraction: the same rows by what they say, on every machine, in any order, whatever is added."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.config import load_config
from sft.data.dataset import Dataset
from sft.errors import InputError
from sft.parallel.world import World
from sft.train.reading import open_data, open_val
from tests.assets import tiny_tokenizer, write_jsonl
from tests.chats import THINKING, assistant, user

ROWS = [{"messages": [user(f"question {n}"), assistant(f"answer {n}")]} for n in range(200)]


def divided(root: Path, *files: str, tokenizer=None, **keys) -> tuple[set[str], set[str]]:
    """What trains and what validates: texts."""
    (root / "config.json").write_text("{}")
    (root / "model.safetensors").touch()
    given = {
        "model.partial_pretrain": root, "data.cache_dir": root / "cache", "data.train_batch_size": 4,
        "data.val_fraction": 0.2, "data.num_workers": 1, "data.train_files": f"[{','.join(files)}]",
    } | {key.replace("__", "."): value for key, value in keys.items()}  # fmt: skip
    config = load_config([f"{key}={value}" for key, value in given.items()], warn=lambda line: None)
    tokenizer = tokenizer or tiny_tokenizer()
    world = World(rank=0, size=1, local_rank=0)
    train, val = open_data(config, tokenizer, world)
    assert val is not None and open_val(config, tokenizer, world).fingerprint == val.fingerprint != train.fingerprint

    def texts(data: Dataset) -> set[str]:
        return {tokenizer.decode(data.samples[n].input_ids) for n in range(len(data))}

    assert not texts(train) & texts(val)
    return texts(train), texts(val)


def test_a_part_of_the_rows_is_held_out_whatever_their_order_and_their_file(tmp_path):
    whole = str(write_jsonl(tmp_path / "a.jsonl", ROWS))
    halves = [str(write_jsonl(tmp_path / f"{n}.jsonl", ROWS[::-1][n::2])) for n in range(2)]
    train, val = divided(tmp_path, whole)
    assert len(train) + len(val) == 200 and 20 < len(val) < 60
    assert divided(tmp_path, *halves) == (train, val)


def test_neither_tokenizer_nor_template_nor_kind_of_file_nor_ids_decide(tmp_path):
    def numbers(texts):
        return {int(re.search(r"answer (\d+)", text)[1]) for text in texts}

    _, val = divided(tmp_path, str(write_jsonl(tmp_path / "a.jsonl", ROWS)))
    _, other = divided(tmp_path, str(tmp_path / "a.jsonl"), tokenizer=tiny_tokenizer(THINKING))
    assert val != other and numbers(val) == numbers(other)  # other tokens, the same rows
    last = [
        {"id": n, "messages": [{**m, "weight": None, "id": "x"} for m in row["messages"]]} for n, row in enumerate(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(last), tmp_path / "a.parquet")
    assert numbers(divided(tmp_path, str(tmp_path / "a.parquet"))[1]) == numbers(val)


def test_a_row_keeps_its_fate_when_rows_are_added_and_a_duplicate_shares_it(tmp_path):
    train, val = divided(tmp_path, str(write_jsonl(tmp_path / "a.jsonl", ROWS[:100])))
    more, more_val = divided(tmp_path, str(write_jsonl(tmp_path / "b.jsonl", [*ROWS, *ROWS[:50]])))
    assert train < more and val < more_val


def test_a_number_of_rows_is_held_out_of_each_entry_with_their_duplicates(tmp_path):
    first = str(write_jsonl(tmp_path / "a.jsonl", ROWS[:100]))
    second = str(write_jsonl(tmp_path / "b.jsonl", [*ROWS[100:], *ROWS[100:]]))
    train, val = divided(tmp_path, first, second, data__val_fraction=7)
    assert len(val) == 14 and len(train) == 186
    numbers = sorted(int(text.rpartition("answer ")[2].partition("<")[0]) for text in val)
    assert numbers[6] < 100 <= numbers[7]


def test_of_a_mixture_each_entry_gives_its_part_and_is_validated_by_itself(tmp_path):
    first, second = (write_jsonl(tmp_path / f"{n}.jsonl", ROWS[n * 100 : n * 100 + 100]) for n in range(2))
    mixture = f"[{{path: {first}, weight: 3.0}}, {{path: {second}}}]"
    (train, val) = divided(tmp_path, data__mixture=mixture, data__train_files="null")
    assert len(train) + len(val) == 200
    assert val == divided(tmp_path, str(first), str(second))[1]


def test_all_samples_of_a_row_are_held_out_together(tmp_path):
    turns = [
        {"messages": [m for k in range(3) for m in (user(f"{n} {k}"), assistant(f"a{n} {k}", reasoning_content="t"))]}
        for n in range(60)
    ]
    train, val = divided(tmp_path, str(write_jsonl(tmp_path / "a.jsonl", turns)), tokenizer=tiny_tokenizer(THINKING))
    assert len(train) + len(val) == 180
    rows_of = [{text.partition(" 0")[0] for text in texts} for texts in (train, val)]
    assert not rows_of[0] & rows_of[1] and rows_of[1]


def test_nothing_left_on_one_side_is_an_error_that_says_which(tmp_path):
    file = str(write_jsonl(tmp_path / "a.jsonl", ROWS[:3]))
    with pytest.raises(InputError, match=r"no sample is left for training by data\.val_fraction=3"):
        divided(tmp_path, file, data__val_fraction=3)
    with pytest.raises(InputError, match=r"no sample is left for validation by data\.val_fraction=1e-09"):
        divided(tmp_path, file, data__val_fraction="1e-09")


def test_a_fraction_beside_files_is_an_error(tmp_path):
    file = str(write_jsonl(tmp_path / "a.jsonl", ROWS[:3]))
    with pytest.raises(InputError, match=r"data\.val_fraction=0\.2 would be ignored"):
        divided(tmp_path, file, data__val_files=file)
