"""Optimizers that remember other things than AdamW: 8-bit codes with their scales, and plain numbers; settings."""

from __future__ import annotations

import torch
import yaml

from sft.config.compose import CONFIG_DIR
from sft.config.schema import OptimConfig
from sft.parallel.shards import local_part

BLOCK = 8


def optim(**changed):
    """The optim section as conf/ has it, but for what is `changed`."""
    return OptimConfig(**(yaml.safe_load((CONFIG_DIR / "optim" / "adamw.yaml").read_text()) | {"lr": 1e-5} | changed))


class Odd(torch.optim.Optimizer):
    """Moves weights by a decayed sum of gradients, and keeps it in every form that a checkpoint may meet.

    As a DTensor, as codes with the shape of this rank's part, as one scale per block of that part; a number of Python,
    a tensor without dims, a count of updates, nothing.
    """

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, local_part(weight), local_part(weight.grad), group["lr"])

    def _move(self, weight, part, gradient, lr):
        state = self.state[weight]
        if not state:
            state["sum"] = torch.zeros_like(weight)
            state["codes"] = torch.zeros_like(part, dtype=torch.uint8)
            state["scales"] = torch.zeros(-(-part.numel() // BLOCK))
            state["best"] = 0.0
            state["norm"] = torch.zeros(())
            state["step"] = 0
            state["nothing"] = None
        total = local_part(state["sum"])
        total.mul_(0.9).add_(gradient)
        if part.numel():
            blocks = torch.nn.functional.pad(total.flatten(), (0, -total.numel() % BLOCK)).view(-1, BLOCK)
            state["scales"].copy_(blocks.abs().amax(dim=1))
            spread = (blocks / state["scales"].clamp(min=1e-9)[:, None] + 1) * 127
            state["codes"].copy_(spread.flatten()[: part.numel()].view_as(part).round())
        state["step"] += 1
        state["best"] = max(state["best"], 1 / state["step"])
        state["norm"].fill_(state["step"] ** 0.5)
        part.sub_(total, alpha=lr * state["best"] / (1 + float(state["norm"])))
