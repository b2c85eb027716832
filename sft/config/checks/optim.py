"""Check the keys of group `optim` among themselves."""

from __future__ import annotations

from collections.abc import Iterator

from sft.config.problems import shown
from sft.config.schema import OptimConfig

BETAS = (0.9, 0.95)
"""The default of optim.betas."""


def optim_problems(optim: OptimConfig) -> Iterator[str]:
    """Yield what is wrong with the keys of `optim`, as far as this can be known without the model."""
    names: dict[str, int] = {}
    for number, group in enumerate(optim.groups):
        if group.lr is None and group.weight_decay is None:
            yield (
                f"optim.groups[{number}] (match={shown(group.match)}) changes nothing: it has neither lr nor "
                "weight_decay; give one of them, or leave the group out."
            )
        name = group.name or group.match
        if names.setdefault(name, number) != number:
            yield f"optim.groups[{names[name]}] and optim.groups[{number}] are both called {name}; name one of them."


def optim_warnings(optim: OptimConfig) -> Iterator[str]:
    """Yield which keys of `optim` are set and do nothing with this optimizer."""
    first, second = optim.betas
    if optim.name == "adafactor" and optim.betas != BETAS:
        yield f"optim.betas=[{first:g}, {second:g}] has no effect: adafactor keeps no mean of gradients (docs/run.md)."
    if optim.name == "sgd" and second != BETAS[1]:
        yield f"the second of optim.betas, {second:g}, has no effect: optim.name=sgd has the first alone, its momentum."
