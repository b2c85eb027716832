"""The overrides of training are those of evaluation: what only training reads is not asked for, nor refused."""

import pytest

from sft.config import load_config
from sft.errors import InputError
from sft.evaluate.options import Options, take_options
from sft.evaluate.run import check
from sft.parallel.world import World
from tests.assets import write_jsonl


def config_of(*overrides):
    return load_config(take_options(overrides)[1], warn=lambda told: None)


def test_what_only_training_reads_may_stay(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    val = write_jsonl(tmp_path / "val.jsonl", [{"question": "?", "answer": "!"}])
    training = ["trainer.hub_model_id=me/tiny", "trainer.save_best=true", "trainer.load_best_at_end=true"]
    training += ["trainer.early_stop_metric=val/loss", "early_stopping_patience=2", "dataset=gone.jsonl"]
    training += ["model.fsdp_config.dp_replicate=4"]
    config = config_of("model.partial_pretrain=org/name", f"data.val_files={val}", *training)
    assert config.data.val_files == (str(val),) and config.trainer.hub_model_id is None


@pytest.mark.parametrize("experiment", ["modern_llm_local", "modern_llm_gpu"])
def test_a_preset_without_validation_files_is_one_complaint_of_evaluations_own(experiment):
    config = config_of(f"+experiment={experiment}", "model.partial_pretrain=org/name")
    with pytest.raises(InputError, match="nothing to evaluate on"):
        check(config, Options(), World(rank=0, size=1, local_rank=0))


@pytest.mark.parametrize("alias", ["model.path", "base_model"])
def test_the_trained_model_stands_beside_the_base_model_under_its_other_name(tmp_path, alias):
    val = write_jsonl(tmp_path / "val.jsonl", [{"question": "?", "answer": "!"}])
    given = [f"{alias}=org/base", f"data.val_files={val}"]
    assert config_of(*given, "model.partial_pretrain=org/trained").model.partial_pretrain == "org/trained"
    assert config_of(*given).model.partial_pretrain == "org/base"
