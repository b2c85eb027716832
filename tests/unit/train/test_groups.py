"""Groups of parameters: who is in which, with which rate and decay, and what is said of patterns that do not work."""

import pytest

from sft.config.schema import ParameterGroup
from sft.errors import InputError
from sft.train.groups import describe, parameter_groups
from tests.models import causal_model
from tests.optimizers import optim

LR = 1e-3


@pytest.fixture(scope="module")
def model():
    return causal_model(seed=0)


def groups_of(model, *groups):
    return parameter_groups(model, optim(lr=LR, weight_decay=0.1, groups=[ParameterGroup(**group) for group in groups]))


def test_without_groups_matrices_decay_and_vectors_do_not(model):
    matrices, vectors = groups_of(model)
    assert all(weight.ndim >= 2 for weight in matrices["params"]) and matrices["weight_decay"] == 0.1
    assert all(weight.ndim < 2 for weight in vectors["params"]) and vectors["weight_decay"] == 0
    assert {group["lr_share"] for group in (matrices, vectors)} == {1.0}


def test_a_group_has_its_own_rate_and_decay_and_nobody_is_lost_or_twice(model):
    found = groups_of(
        model,
        {"match": "embed_tokens", "lr": "x0.1", "weight_decay": 0},
        {"match": r"layers\.0\.", "lr": 5e-4, "name": "low"},
    )
    by_name = {}
    for group in found:
        by_name.setdefault(group["name"], []).append(group)
    (embeddings,) = by_name["embed_tokens"]
    assert embeddings["lr"] == pytest.approx(1e-4) and embeddings["lr_share"] == pytest.approx(0.1)
    assert embeddings["weight_decay"] == 0 and embeddings["params"] == [model.get_input_embeddings().weight]
    assert {group["weight_decay"] for group in by_name["low"]} == {0.1, 0.0} and by_name["low"][0]["lr_share"] == 0.5
    everybody = [id(weight) for group in found for weight in group["params"]]
    assert sorted(everybody) == sorted(map(id, model.parameters()))


def test_every_group_is_said_with_its_size(model):
    (line,) = describe(groups_of(model, {"match": "norm", "lr": "x2", "weight_decay": 0.5}))
    norms = [weight for name, weight in model.named_parameters() if "norm" in name]
    numbers = sum(weight.numel() for weight in norms)
    assert line == f"optim.groups: norm: {len(norms)} parameters, {numbers:,} numbers, lr 0.002, weight_decay 0.5"


def test_a_pattern_that_matches_nothing_is_told_what_is_near(model):
    with pytest.raises(InputError, match=r"optim.groups\[0\].match=embedd_tokens matches no parameter .*embed_tokens"):
        groups_of(model, {"match": "embedd_tokens", "lr": "x0.1"})


def test_groups_that_overlap_are_refused(model):
    with pytest.raises(InputError, match=r"groups\[0\].match=layers and optim.groups\[1\].match=mlp both match .*mlp"):
        groups_of(model, {"match": "layers", "lr": "x0.1"}, {"match": "mlp", "lr": "x0.2"})


def test_a_frozen_parameter_is_in_no_group(model):
    model.get_input_embeddings().weight.requires_grad_(False)
    try:
        with pytest.raises(InputError, match="matches no parameter that trains"):
            groups_of(model, {"match": "embed_tokens", "lr": "x0.1"})
    finally:
        model.get_input_embeddings().weight.requires_grad_(True)
