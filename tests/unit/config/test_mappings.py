"""Dicts, keyword arguments and YAML files in place of overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from sft.config import ConfigError, cli, config_to_yaml, load_config
from sft.config.mappings import as_overrides, dotted

TEMPLATE = "{% for m in messages %}'{{ m.content }}' \"said\" \\n\n{% endfor %}\\"


def configs_of(*arguments: str) -> list:
    seen: list = []
    cli(seen.append, list(arguments))
    return seen


def test_dicts_and_keywords_are_overrides(runnable: list[str]) -> None:
    nested = {"model": {"partial_pretrain": "./model"}, "data.train_files": ["rows.jsonl"], "data": {"max_length": 9}}
    config = load_config(nested, optim={"lr": 1e-4, "betas": [0.8, 0.9]}, max_steps=5, warn=lambda text: None)
    assert (config.data.train_files, config.data.max_length) == (("rows.jsonl",), 9)
    assert (config.optim.lr, config.optim.betas, config.trainer.total_training_steps) == (1e-4, (0.8, 0.9), 5)
    assert load_config([*runnable, "optim.lr=1"], optim={"lr": 2.0}).optim.lr == 2
    quiet = {"data.val_files": ["rows.jsonl"]}
    assert load_config({"experiment": "quickstart"} | nested | quiet).data.train_batch_size == 128
    with pytest.raises(ConfigError, match=r"2 problems(.|\n)*optim\.learn is not a key(.|\n)*trainer\.seed"):
        load_config(nested, optim={"learn": 1}, trainer={"seed": -1})


@given(st.text(alphabet=st.sampled_from("ab \\\"'{}[]:,=$%\n~/#"), max_size=12))
def test_any_text_arrives_as_it_is(text: str) -> None:
    (override,) = as_overrides({"data.text_key": text})
    assert OverridesParser.create().parse_override(override).value().__str__() == text


@pytest.mark.parametrize("text", ["\\\n", '"\n', "\\"])
def test_a_backslash_or_quote_before_the_last_line_end_stays_one(text: str) -> None:
    (override,) = as_overrides({"data.text_key": text})
    assert str(OverridesParser.create().parse_override(override).value()) == text


def test_text_with_quotes_and_lines_arrives(runnable: list[str]) -> None:
    data = {"chat_template": TEMPLATE, "apply_chat_template_kwargs": {"style": "a 'b'", "n": [1, None, True]}}
    loaded = load_config(runnable, data=data).data
    assert loaded.chat_template == TEMPLATE
    assert loaded.apply_chat_template_kwargs == data["apply_chat_template_kwargs"]


def test_a_yaml_file_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.yaml").write_text(
        "model: {partial_pretrain: ./model}\ndata:\n  train_files: rows.jsonl\nlearning_rate: 2e-5\noutput_dir: out\n"
    )
    (config,) = configs_of("mine.yaml")
    assert (config.optim.lr, config.trainer.default_local_dir) == (2e-5, "out")
    (config,) = configs_of("mine.yaml", "optim.lr=1", "trainer.seed=3")  # the command line beats it, by any name
    assert (config.optim.lr, config.trainer.seed) == (1, 3)
    (here / "mine.yaml").write_text(
        "experiment: quickstart\nmodel.partial_pretrain: ./model\n"
        "data: {train_files: rows.jsonl, val_files: rows.jsonl}"
    )
    (config,) = configs_of("mine.yaml", "optim.lr=1")
    assert (config.trainer.total_training_steps, config.optim.lr) == (400, 1)
    first, second = configs_of("mine.yaml", "-m", "optim.lr=1,2", "trainer.default_local_dir=null")
    assert (first.optim.lr, second.optim.lr) == (1, 2)


def test_the_configuration_of_a_run_is_such_a_file(here: Path, runnable: list[str]) -> None:
    config = load_config([*runnable, "optim.lr=0.25", "trainer.default_local_dir=run"])
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text(config_to_yaml(config))
    assert configs_of("run") == configs_of("run/config.yaml") == [config]
    (other,) = configs_of("run", "data.val_files=null")
    assert other.data.val_files is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "gone.yaml does not exist (looked for "),
        ("a: [", "gone.yaml:1: not YAML ("),
        ("- a", "holds a list"),
        ("optim: {lrr: 1}", "optim.lrr"),
    ],
)
def test_a_file_that_cannot_be_read(
    content: str | None, told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (here / "gone.yaml").write_text(content)
    with pytest.raises(SystemExit) as left:
        configs_of("gone.yaml")
    assert left.value.code == 2
    assert told in capsys.readouterr().err


def test_evaluation_reads_a_run(here: Path, runnable: list[str]) -> None:
    from sft.evaluate.options import take_options

    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text(yaml.safe_dump({"model": {"partial_pretrain": "./model"}}))
    (here / "run" / "config.json").write_text("{}")
    (here / "run" / "model.safetensors").write_bytes(b"")
    _, overrides = take_options(["run", "data.val_files=rows.jsonl"])
    (config,) = configs_of(*overrides)
    assert (config.model.partial_pretrain, config.data.val_files) == ("run", ("rows.jsonl",))


def test_nested_keys_become_dotted_ones() -> None:
    nested = {"a": {"b": {"c": 1}, "d": {}}, "e": [2]}
    assert dotted(nested) == {"a.b.c": 1, "a.d": {}, "e": [2]}
    assert dotted(nested, whole={"a.b"}) == {"a.b": {"c": 1}, "a.d": {}, "e": [2]}
