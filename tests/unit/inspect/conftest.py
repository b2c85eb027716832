"""A tiny model and rows with something to see, and the command called in this process."""

from __future__ import annotations

import pytest

from sft.config.compose import compose
from sft.config.door import checked
from sft.inspect.__main__ import look
from sft.inspect.options import take_options
from tests.assets import tiny_model_dir, write_jsonl
from tests.rows import STRANGE_ROWS

VAL = [{"question": "1 + 1?", "answer": "2"}, {"question": "1 + 2?", "answer": "3"}]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("inspect") / "model")


@pytest.fixture
def overrides(tmp_path, model):
    """Of a run on STRANGE_ROWS and VAL, as the trainer would take them."""
    write_jsonl(tmp_path / "train.jsonl", STRANGE_ROWS)
    write_jsonl(tmp_path / "val.jsonl", VAL)
    return [
        f"model.partial_pretrain={model}",
        f"data.train_files={tmp_path / 'train.jsonl'}",
        f"data.val_files={tmp_path / 'val.jsonl'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.train_batch_size=4",
        "data.micro_batch_size_per_gpu=2",
        "data.max_length=64",
        "data.truncation=right",
    ]


@pytest.fixture
def inspect(overrides, capsys, monkeypatch):
    """inspect("+inspect.samples=1"): (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")

    def inspect(*more):
        options, rest = take_options([*overrides, *more])
        code = look(checked(compose(rest), rest, print, options.ranks or 0), options)
        told = capsys.readouterr()
        return code, told.out, told.err

    return inspect


@pytest.fixture
def page_file(inspect, tmp_path):
    code, out, _ = inspect(f"+inspect.html={tmp_path / 'page.html'}", "data.max_length=500", "+inspect.samples=0")
    assert code == 0 and "5 of 5 samples as a page" in out
    return tmp_path / "page.html"
