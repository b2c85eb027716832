"""Every optimizer beside the default: ranks do not change its numbers, and a run that was stopped goes on bit for bit."""

import json

import pytest

from tests.launch import read_metrics, succeed

GROUPS = "optim.groups=[{match: embed_tokens, lr: x0.1, name: embeddings}, {match: norm, lr: 5e-3, weight_decay: 0.1}]"
TOLERANCE = {"muon": 1e-3, "sgd": 1e-5}
"""Muon's iteration runs in bf16, where a gradient that differs in its last bit may be rounded to the next number."""
OPTIMIZERS = {"muon": ["optim.name=muon", GROUPS], "sgd": ["optim.name=sgd", "optim.lr=0.1"]}


def curve(directory):
    return [(line["train/loss"], line["train/grad_norm"]) for line in read_metrics(directory)]


def test_ranks_do_not_change_the_numbers_and_a_run_goes_on_bit_for_bit(base, tmp_path):
    """Muon makes whole matrices orthogonal, of which two ranks hold the parts."""
    found = {}
    for ranks in (1, 2):
        runs = []
        for name, options in OPTIMIZERS.items():
            for directory, steps in (("whole", 4), ("halves", 2), ("halves", 4)):
                home = f"trainer.default_local_dir={tmp_path / name / str(ranks) / directory}"
                runs.append([*base, *options, f"trainer.total_training_steps={steps}", home])
        (tmp_path / f"runs_{ranks}.json").write_text(json.dumps(runs))
        succeed([str(tmp_path / f"runs_{ranks}.json")], ranks=ranks, cwd=tmp_path, module="tests.dist.several")
        for name in OPTIMIZERS:
            found[name, ranks] = curve(tmp_path / name / str(ranks) / "whole")
            assert found[name, ranks] == curve(tmp_path / name / str(ranks) / "halves"), (name, ranks)
    for name in OPTIMIZERS:
        for one, two in zip(found[name, 1], found[name, 2], strict=True):
            assert two == pytest.approx(one, rel=TOLERANCE[name]), name
    last = read_metrics(tmp_path / "muon" / "2" / "whole")[-1]
    assert last["train/lr/embeddings"] == pytest.approx(last["train/lr"] / 10)
    assert last["train/lr/norm"] == pytest.approx(5e-3)
