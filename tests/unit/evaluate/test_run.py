"""What evaluation says where it is not rank 0 that fails, and of files with the name of the total."""

import os

import pytest

from sft.distributed import LostRanksError
from sft.errors import InputError
from sft.evaluate import run
from sft.score import Score


@pytest.mark.parametrize(
    ("rank", "local_rank", "error", "code", "told"),
    [
        ("0", "0", InputError("no file"), 2, "error: no file\n"),
        ("8", "0", InputError("no file"), 2, "error on rank 8: no file\n"),
        ("9", "1", InputError("no file"), 2, ""),
        ("9", "1", LostRanksError("rank 3 is gone"), 1, "error on rank 9: rank 3 is gone\n"),
    ],
)
def test_every_node_says_what_is_wrong_with_it(rank, local_rank, error, code, told, monkeypatch, capsys):
    for name, value in {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": "16"}.items():
        monkeypatch.setenv(name, value)

    def fail(*_):
        raise error

    ended = []
    monkeypatch.setattr(run, "evaluate", fail)
    monkeypatch.setattr(os, "_exit", ended.append)
    run.main(None, None)  # pyright: ignore[reportArgumentType]
    assert (ended, capsys.readouterr().err) == ([code], told)


def test_a_file_called_all_is_not_the_total():
    one, other = Score(2.0, 1.0, 4.0, 4.0), Score(6.0, 1.0, 2.0, 2.0)
    numbers = run.numbers_of({"all": one, "other": other})
    assert list(numbers) == ["all", "other", "all files"] and numbers["all"]["loss"] == one.loss
    assert list(run.numbers_of({"one": one, "other": other})) == ["one", "other", "all"]
    assert list(run.numbers_of({"all": one})) == ["all"]
