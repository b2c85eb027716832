"""python -m sft.tokenise: the cache before the GPUs; its shares together are the whole."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sft.errors import InputError
from sft.tokenise import main, part_of
from tests.assets import tiny_tokenizer, write_jsonl
from tests.chats import assistant, user


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Run the command on five files and one of validation with a cache; what it said."""
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    for n in range(5):
        rows = [{"messages": [user(f"{n} {k}"), assistant(f"{k}")]} for k in range(n + 1)]
        write_jsonl(tmp_path / "rows" / f"{n}.jsonl", rows)
    write_jsonl(tmp_path / "val.jsonl", [{"messages": [user("v"), assistant("w")]}])

    def told(cache: Path, *more: str) -> str:
        keys = [f"model.partial_pretrain={tmp_path / 'model'}", f"data.train_files={tmp_path / 'rows'}"]
        keys += [f"data.val_files={tmp_path / 'val.jsonl'}", f"data.cache_dir={cache}", "data.num_workers=1"]
        monkeypatch.setattr(sys, "argv", ["tokenise", *keys, *more])
        main()
        return capsys.readouterr().out

    return told


def kept(cache: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in cache.glob("*/samples.arrow")}


def test_all_shares_together_are_the_whole_and_what_is_there_is_found(told, tmp_path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert "6 files are in " in (said := told(whole)) and "6 tokenised, 0 found there, in" in said
    assert "0 tokenised, 6 found there" in told(whole)
    assert "part 1/3: 3 files" in told(shared, "part=1/3")
    assert len(kept(shared)) == 3
    told(shared, "+part=2/3")
    told(shared, "part=3/3")
    assert len(kept(whole)) == 6 and kept(shared) == kept(whole)


def test_a_share_of_files_whose_rows_are_cut_is_an_error(told, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        told(tmp_path / "cache", "part=1/2", "data.train_max_samples=3")
    assert "part=1/2 divides the files, and max_samples=3 cuts the rows" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", ""])
def test_a_part_that_is_no_share_is_an_error(text):
    with pytest.raises(InputError, match="must be a share of the files"):
        part_of(text)
