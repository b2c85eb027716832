"""What a run is called that nobody has named."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft.config import load_config
from sft.config.run_name import name_of

VALUES = {"model.partial_pretrain": "Qwen/Qwen2.5-0.5B-Instruct", "data.train_files": "~/data/gsm8k/train.parquet"}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ("~/data/gsm8k/train.parquet", "gsm8k"),
        ("mine.jsonl", "mine"),
        ("rows/part-*.jsonl.gz", "rows"),
        ("open-r1/Mixture-of-Thoughts/all:train", "mixture-of-thoughts"),
        (["a/first.csv", "b/second.csv", "c.csv"], "first+2"),
        ("/data/train-00000-of-00001.parquet", ""),
    ],
)
def test_a_name_tells_model_and_data(files: object, told: str) -> None:
    name = name_of(VALUES | {"data.train_files": files})
    model, _, rest = name.partition("instruct")
    assert model == "qwen2.5-0.5b-"
    assert rest.rpartition("-")[0].strip("-") == told
    assert len(rest.rpartition("-")[2]) == 8


def test_the_same_settings_have_the_same_name_and_others_another() -> None:
    same = {
        "trainer.total_epochs": 9,
        "data.micro_batch_size_per_gpu": 1,
        "trainer.save_freq": 5,
        "data.cache_dir": "x",
    }
    assert name_of(VALUES | same) == name_of(VALUES)
    others = [
        {"optim.lr": 1}, {"trainer.seed": 5}, {"model.lora_rank": 8}, {"data.train_batch_size": 9},
        {"data.max_length": 5}, {"data.chat_template": "x"}, {"data.train_files": "/other/gsm8k/train.parquet"},
        {"model.partial_pretrain": "Other/Qwen2.5-0.5B-Instruct"}, {"trainer.init_from_checkpoint": "run"},
    ]  # fmt: skip
    assert len({name_of(VALUES | other) for other in [{}, *others]}) == len(others) + 1


def test_project_and_experiment_are_named_after_the_run_directory(runnable: list[str]) -> None:
    trainer = load_config([*runnable, "trainer.default_local_dir=sweep/lr_1"]).trainer
    assert (trainer.project_name, trainer.experiment_name) == ("sweep", "lr_1")
    trainer = load_config(runnable).trainer
    assert Path(trainer.default_local_dir).parent == Path("runs")
    assert trainer.experiment_name == Path(trainer.default_local_dir).name
    trainer = load_config([*runnable, "trainer.experiment_name=7", "trainer.project_name=mine"]).trainer
    assert (trainer.project_name, trainer.experiment_name) == ("mine", "7")


def test_presets_have_directories_of_their_own(here: Path, runnable: list[str]) -> None:
    presets = ("gsm8k_qwen", "lora", "multiturn", "quickstart", "modern_llm_local", "open_r1_distill")
    runs = {load_config([f"+experiment={name}", *runnable]).trainer.default_local_dir for name in presets}
    assert len(runs) == len(presets)


def test_rows_are_asked_for(here: Path) -> None:
    with pytest.raises(ValueError, match=r"1 problem.*\n.*data\.train_files=null must be a path"):
        load_config(["model.partial_pretrain=./model"])
