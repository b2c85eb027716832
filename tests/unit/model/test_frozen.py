"""Frozen parameters: who they are, that nothing of them moves, and that such a run resumes and exports."""

import pytest
import torch
from safetensors.torch import load_file

from sft import load_config, run
from sft.errors import InputError
from sft.model.frozen import freeze
from sft.track.files import read_metrics
from tests.assets import tiny_model_dir, write_jsonl
from tests.models import causal_model

ROWS = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}."} for k in range(8)]


def trains(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_frozen_and_train_only_name_parameters_by_patterns():
    model = causal_model(seed=0)
    names = trains(model)
    line = freeze(model, ["embed_tokens", r"layers\.0\."], [])
    assert trains(model) == {name for name in names if "embed_tokens" not in name and "layers.0." not in name}
    assert line is not None and line.startswith(f"frozen: {len(names) - len(trains(model))} of {len(names)} parameters")
    model = causal_model(seed=0)
    freeze(model, ["norm"], [r"layers\.1\."])
    assert trains(model) == {name for name in names if "layers.1." in name and "norm" not in name}
    assert freeze(model, [], []) is None


@pytest.mark.parametrize(
    ("frozen", "train_only", "said"),
    [
        (["embedd"], [], "model.frozen=embedd matches no parameter that trains; .*embed_tokens"),
        ([], ["visual"], "model.train_only=visual matches no parameter"),
        (["."], [], "leave nothing to train"),
        (["norm"], ["norm"], "leave nothing to train"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(frozen, train_only, said):
    with pytest.raises(InputError, match=said):
        freeze(causal_model(seed=0), frozen, train_only)


def test_a_run_leaves_them_as_they_are_and_goes_on_bit_for_bit(tmp_path):
    source = tiny_model_dir(tmp_path / "model", dtype="bfloat16")
    base = [
        f"model.partial_pretrain={source}",
        f"data.train_files={write_jsonl(tmp_path / 'rows.jsonl', ROWS)}",
        "data.val_files=null",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.train_batch_size=4",
        "model.fsdp_config.compute_dtype=fp32",
        "model.frozen=[embed_tokens]",
        "optim.lr=1e-2",
        "optim.lr_scheduler=constant",
    ]
    for name, steps in (("whole", 3), ("halves", 1), ("halves", 3)):
        place = [f"trainer.default_local_dir={tmp_path / name}", f"trainer.total_training_steps={steps}"]
        run(load_config([*base, *place], warn=print))
    losses = [
        [line["train/loss"] for line in read_metrics(tmp_path / n / "metrics.jsonl")[0]] for n in ("whole", "halves")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 3
    before, after = (load_file(directory / "model.safetensors") for directory in (source, tmp_path / "whole"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert "model.embed_tokens.weight" not in moved and "model.layers.0.mlp.up_proj.weight" in moved
    state = load_file(next((tmp_path / "whole").glob("global_step_3/state/rank_*.safetensors")))
    assert not any("embed_tokens" in name for name in state), "neither weight nor moments"
