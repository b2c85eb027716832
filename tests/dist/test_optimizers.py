"""Every optimizer beside the default: ranks do not change its numbers, and a stopped run goes on bit for bit."""

import json

import pytest

from tests.assets import tiny_model_dir
from tests.launch import read_metrics, succeed

GROUPS = "optim.groups=[{match: embed_tokens, lr: x0.1, name: embeddings}, {match: norm, lr: 5e-3, weight_decay: 0.1}]"
TOLERANCE = {"muon": 3e-3, "sgd": 1e-5, "adamw_8bit": 3e-3, "lion": 1e-2, "adafactor": 1e-4}
"""Where a gradient differs in its last bit, Muon's iteration in bf16 and codes of 8 bits may round to the next number,
and Lion may go the other way."""
OPTIMIZERS = {
    "muon": ["optim.name=muon", GROUPS],
    "sgd": ["optim.name=sgd", "optim.lr=0.1"],
    "adamw_8bit": ["optim.name=adamw_8bit"],
    "lion": ["optim.name=lion", "optim.lr=3e-4"],
    "adafactor": ["optim.name=adafactor"],
}


def curve(directory):
    return [(line["train/loss"], line["train/grad_norm"]) for line in read_metrics(directory)]


def test_ranks_do_not_change_the_numbers_and_a_run_goes_on_bit_for_bit(base, tmp_path):
    """Muon makes whole matrices orthogonal, and Adafactor sums over columns of which two ranks hold the parts.

    What one rank began, two go on with; four ranks have the same numbers.
    """
    wide = f"model.partial_pretrain={tiny_model_dir(tmp_path / 'wide', hidden_size=256)}"  # rows of whole blocks
    base = [*base, "data.micro_batch_size_per_gpu=1"]

    def run(name, ranks, directory, steps, *more):
        model = [wide] if name == "adamw_8bit" else []
        home = f"trainer.default_local_dir={tmp_path / name / str(ranks) / directory}"
        return [*base, *model, *OPTIMIZERS[name], f"trainer.total_training_steps={steps}", home, *more]

    for ranks in (1, 2, 4):
        runs = [run(name, ranks, "whole", 4) for name in OPTIMIZERS]
        for name in OPTIMIZERS if ranks < 4 else ():
            runs += [run(name, ranks, "halves", steps) for steps in ((2,) if ranks == 1 else (2, 4))]
        for name in OPTIMIZERS if ranks == 2 else ():
            begun = tmp_path / name / "1" / "halves" / "global_step_2"
            runs.append(
                run(name, 2, "moved", 4, "trainer.resume_mode=resume_path", f"trainer.resume_from_path={begun}")
            )
        (tmp_path / f"runs_{ranks}.json").write_text(json.dumps(runs))
        succeed([str(tmp_path / f"runs_{ranks}.json")], ranks=ranks, cwd=tmp_path, module="tests.dist.several")
    for name in OPTIMIZERS:
        one, two, four = (curve(tmp_path / name / str(ranks) / "whole") for ranks in (1, 2, 4))
        assert two == curve(tmp_path / name / "2" / "halves"), name
        assert len(one) == 4
        for other in (two, four, one[:2] + curve(tmp_path / name / "2" / "moved")):
            for expected, found in zip(one, other, strict=True):
                assert found == pytest.approx(expected, rel=TOLERANCE[name]), name
    last = read_metrics(tmp_path / "muon" / "2" / "whole")[-1]
    assert last["train/lr/embeddings"] == pytest.approx(last["train/lr"] / 10)
    assert last["train/lr/norm"] == pytest.approx(5e-3)
