"""What people type first: each slip is one sentence that says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft.config.cli import cli
from sft.config.slips import key_meant_by


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--optim.lr=1e-4"], "--optim.lr=1e-4: keys have no dashes; write optim.lr=1e-4."),
        (["--optim.lr", "1e-4"], "--optim.lr: keys have no dashes; write optim.lr=1e-4."),
        (["--lr", "1e-4"], "--lr: keys have no dashes; write optim.lr=1e-4."),
        (["-lr=1"], "-lr=1: keys have no dashes; write optim.lr=1."),
        (["--learning-rate", "1"], "--learning-rate: keys have no dashes; write learning_rate=1."),
        (["--packing"], "--packing: keys have no dashes; write packing=value."),
        (["--quite_unknown", "data.max_length=9"], "--quite_unknown: keys have no dashes; write quite_unknown=value."),
        (["--config", "mine.yaml"], "--config: keys have no dashes; write mine.yaml."),
        (["--hf_token", "hf_abcdefghijklmnop"], "hf_token looks like a secret, and others can read a command line"),
        (["optim.lr", "=", "1e-4"], '"optim.lr" and "1e-4" stand apart; write optim.lr=1e-4, without blanks.'),
        (["optim.lr", "=1e-4"], '"optim.lr" and "1e-4" stand apart; write optim.lr=1e-4, without blanks.'),
        (["optim.lr=", "1e-4"], '"optim.lr" and "1e-4" stand apart; write optim.lr=1e-4, without blanks.'),
        (["optim.lr:", "1e-4"], '"optim.lr" and "1e-4" stand apart; write optim.lr=1e-4, without blanks.'),
        (["hf_token", "=", "hf_abcdefghijklmnop"], "hf_token looks like a secret"),
    ],
)
def test_a_slip_is_told_what_to_write(
    typed: list[str], told: str, runnable: list[str], capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    (here / "mine.yaml").write_text("optim: {lr: 1}\n")
    with pytest.raises(SystemExit) as ended:
        cli(lambda config: None, [*runnable, *typed])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert told in said
    assert "abcdefghijklmnop" not in said
    assert said.count("\n") == 2, "the count of problems, and the problem"


@pytest.mark.parametrize(
    ("typed", "seen"),
    [
        (["--cfg", "job"], []),
        (["--resolve", "--cfg=job"], []),
        (["--multi", "optim.lr=1,2"], [1, 2]),
        (["trainer.resume_mode=auto", "mine.yaml"], [3]),
    ],
)
def test_what_is_no_slip(typed: list[str], seen: list[float], runnable: list[str], here: Path) -> None:
    (here / "mine.yaml").write_text("optim: {lr: 3}\n")
    rates: list[float] = []
    cli(lambda config: rates.append(config.optim.lr), [*runnable, *typed])
    assert rates == seen


@pytest.mark.parametrize("following", ["data.max_length=9", "mine.yaml"])
def test_a_value_may_be_empty(
    following: str, runnable: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.yaml").write_text("optim: {lr: 3}\n")
    with pytest.raises(SystemExit):
        cli(lambda config: None, [*runnable, "data.prompt_key=", following])
    assert 'data.prompt_key="" must be text' in capsys.readouterr().err


def test_a_key_is_guessed_only_where_one_is_like_it() -> None:
    assert [key_meant_by(name) for name in ("optim.lr", "lr", "epochs", "zzz")] == [
        "optim.lr", "optim.lr", "epochs", "zzz"
    ]  # fmt: skip
