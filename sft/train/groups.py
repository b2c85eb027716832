"""Divide the parameters that train into groups, each with a learning rate and a weight decay of its own."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

import torch

from sft.config.schema import OptimConfig, ParameterGroup
from sft.errors import InputError
from sft.model.names import matching, shown_name


def parameter_groups(model: torch.nn.Module, optim: OptimConfig, apart: Set[str] = frozenset()) -> list[dict[str, Any]]:
    """Return the groups for a torch optimizer: those of optim.groups first, then everything else.

    A group has params, lr, weight_decay, and:
        name      of optim.groups; None for everything else
        lr_share  its lr as a share of optim.lr: the schedule moves all groups alike
        apart     whether its parameters are among `apart`, which need another kind of update

    Matrices decay, vectors (norms, biases) do not, unless the group says so. Raises InputError for a pattern that
    matches nothing, and for a parameter that two patterns match.
    """
    named = [(shown_name(name), weight) for name, weight in model.named_parameters() if weight.requires_grad]
    trainable = dict(named)
    assert len(trainable) == len(named), "two parameters have the same name, so that one would not train"
    asked_of = _assign(trainable, optim.groups)
    divided: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, weight in sorted(trainable.items(), key=lambda item: item[1].ndim < 2):  # stable: matrices first
        number, is_vector = asked_of.get(name), weight.ndim < 2
        asked = optim.groups[number] if number is not None else None
        key = (number if number is not None else len(optim.groups), is_vector, name in apart)
        if key not in divided:
            lr = rate_of(asked, optim.lr) if asked else optim.lr
            decay = asked.weight_decay if asked and asked.weight_decay is not None else None
            divided[key] = {
                "params": [],
                "lr": lr,
                "weight_decay": decay if decay is not None else 0.0 if is_vector else optim.weight_decay,
                "name": name_of(asked) if asked else None,
                "lr_share": lr / optim.lr,
                "apart": name in apart,
            }
        divided[key]["params"].append(weight)
    return [divided[key] for key in sorted(divided)]


def rate_of(group: ParameterGroup, lr: float) -> float:
    """Return the peak rate of a group; "x0.1" is a share of `lr`."""
    if group.lr is None:
        return lr
    return float(group.lr[1:]) * lr if isinstance(group.lr, str) else group.lr


def name_of(group: ParameterGroup) -> str:
    """Return what logs and metrics call a group."""
    return group.name or group.match


def describe(groups: Iterable[dict[str, Any]]) -> list[str]:
    """Return one line for every group of optim.groups: its size, its rate, its decay."""
    told: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        if group["name"] is not None:
            told.setdefault(group["name"], []).append(group)
    lines = []
    for name, parts in told.items():
        weights = [weight for part in parts for weight in part["params"]]
        decays = " and ".join(dict.fromkeys(f"{part['weight_decay']:g}" for part in parts))
        numbers = sum(weight.numel() for weight in weights)
        lines.append(
            f"optim.groups: {name}: {len(weights)} parameter{'s' * (len(weights) != 1)}, {numbers:,} numbers, "
            f"lr {parts[0]['lr']:g}, weight_decay {decays}"
        )
    return lines


def _assign(names: Iterable[str], groups: tuple[ParameterGroup, ...]) -> dict[str, int]:
    """Return the number of the group of every parameter that a pattern matches."""
    names, number_of = list(names), {}
    for number, group in enumerate(groups):
        matched = matching(f"optim.groups[{number}].match", group.match, names)
        for name in matched:
            if (other := number_of.setdefault(name, number)) != number:
                raise InputError(
                    f"optim.groups[{other}].match={groups[other].match} and optim.groups[{number}].match={group.match} "
                    f"both match {name}: a parameter is in one group. Make one of them narrower."
                )
    return number_of
