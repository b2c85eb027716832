"""The numbers of evaluation, also of files with the name of the total."""

from sft.evaluate import run
from sft.train.score import Score


def test_a_file_called_all_is_not_the_total():
    one, other = Score(2.0, 1.0, 4.0, 4.0), Score(6.0, 1.0, 2.0, 2.0)
    numbers = run.numbers_of({"all": one, "other": other})
    assert list(numbers) == ["all", "other", "all files"] and numbers["all"]["loss"] == one.loss
    assert list(run.numbers_of({"one": one, "other": other})) == ["one", "other", "all"]
    assert list(run.numbers_of({"all": one})) == ["all"]
