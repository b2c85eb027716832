"""Optimizers that step over the parts of DTensors that a rank holds.

What is remembered of a weight is cut as the weight is, or lies whole on every rank, so a checkpoint goes on with any
number of ranks (sft/checkpoint/optimizer.py).

Shapes: O and I rows and columns of a matrix, E experts of a weight [E, O, I].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from sft.parallel.shards import as_part_like, local_part

BLOCK = 256
"""Numbers that share a scale in AdamW8bit: what the kernels of bitsandbytes are made for."""

Groups = list[dict[str, Any]]


class OverParts:
    """Let an elementwise optimizer of torch step over the parts that this rank holds: the same numbers, bit for bit.

    No part needs the others, but DTensor asks of each operation how its result is sharded. For 310 weights on a CPU
    that took 200 to 560 ms of the first step and 4 ms of every other one.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[torch.Tensor | None]) -> bool:
        told = super()._init_group(group, *lists)  # pyright: ignore[reportAttributeAccessIssue]
        for tensors in lists:  # weights, gradients, moments, step counters
            tensors[:] = [None if tensor is None else local_part(tensor) for tensor in tensors]
        return told


class ShardedAdamW(OverParts, torch.optim.AdamW):
    """AdamW over DTensors. Fused, its kernel divides gradients by grad_scale, and does nothing where found_inf is 1."""

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None


class ShardedSGD(OverParts, torch.optim.SGD):
    """SGD with momentum over DTensors."""


class Two(torch.optim.Optimizer):
    """One optimizer for the groups that are `apart`, another for all others: one list of groups, one state.

    Muon is for hidden matrices. It makes the update of a whole matrix orthogonal, so it needs its other parts: DTensor
    gathers them. Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; scaled to the size of AdamW's updates
    as in Liu et al. 2025, arXiv:2502.16982, so that one learning rate fits both.
    """

    def __init__(
        self,
        groups: Groups,
        apart: Callable[[Groups], torch.optim.Optimizer],
        others: Callable[[Groups], torch.optim.Optimizer],
    ):
        super().__init__(groups, {"lr": 0.0})
        self._parts: list[torch.optim.Optimizer] = []
        for is_apart, build in ((True, apart), (False, others)):
            if part := [group for group in self.param_groups if group["apart"] is is_apart]:
                self._parts.append(build(part))
        for part in self._parts:  # they hold the same groups; a checkpoint asks for one state
            part.state = self.state

    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step of both."""
        for part in self._parts:
            part.step()


def _with_gradient(groups: Groups) -> Iterator[tuple[dict[str, Any], torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield (group, weight, this rank's part of it, the same of its gradient)."""
    for group in groups:
        for weight in group["params"]:
            if weight.grad is not None:
                yield group, weight, local_part(weight.detach()), local_part(weight.grad)


class AdamW8bit(torch.optim.Optimizer):
    """AdamW whose moments are codes of 8 bits, with a scale for every block of 256 numbers of a row.

    For weights whose rows are whole blocks: ranks cut rows apart, so they do not change the numbers. bitsandbytes
    computes the step; its own optimizer takes no DTensors and chooses the precision by the size of the local part.
    Source: Dettmers et al. 2022, arXiv:2110.02861.
    """

    def __init__(self, groups: Groups, betas: tuple[float, float]):
        from bitsandbytes.functional import create_dynamic_map  # optional, and it takes a second to import

        super().__init__(groups, {"lr": 0.0, "betas": betas})
        self._codes = {True: create_dynamic_map(signed=True), False: create_dynamic_map(signed=False)}

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        for group, weight, part, gradient in _with_gradient(self.param_groups):
            state = self.state[weight]
            if not state:
                blocks = (len(weight), weight.shape[1:].numel() // BLOCK)
                for moment in ("exp_avg", "exp_avg_sq"):
                    state[moment] = torch.zeros_like(weight, dtype=torch.uint8)
                    scales = torch.zeros(len(part), blocks[1], device=part.device)
                    state[f"{moment}_scale"] = as_part_like(weight, scales, blocks)
                state["step"] = 0
            state["step"] += 1
            if not part.numel():
                continue
            torch.ops.bitsandbytes.optimizer_update_8bit_blockwise(
                "adam",
                gradient,
                part,
                local_part(state["exp_avg"]),
                local_part(state["exp_avg_sq"]),
                *group["betas"],
                beta3=0.0,
                alpha=0.0,
                eps=1e-8,
                step=state["step"],
                lr=group["lr"],
                qmap1=self._codes_on(part.device, signed=True),
                qmap2=self._codes_on(part.device, signed=False),
                absmax1=local_part(state["exp_avg_scale"]).view(-1),
                absmax2=local_part(state["exp_avg_sq_scale"]).view(-1),
                weight_decay=group["weight_decay"],
                gnorm_scale=1.0,
            )

    def _codes_on(self, device: torch.device, *, signed: bool) -> torch.Tensor:
        self._codes[signed] = self._codes[signed].to(device)  # at once, but for the first time
        return self._codes[signed]


class Lion(torch.optim.Optimizer):
    """The sign of a running mean of gradients: one number to remember, updates of one size.

    Its rate is a third to a tenth of AdamW's. Source: Chen et al. 2023, arXiv:2302.06675.
    """

    def __init__(self, groups: Groups, betas: tuple[float, float]):
        super().__init__(groups, {"lr": 0.0, "betas": betas})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step."""
        for group, weight, part, gradient in _with_gradient(self.param_groups):
            state, (ahead, kept) = self.state[weight], group["betas"]
            if not state:
                state["exp_avg"] = torch.zeros_like(weight)
            mean = local_part(state["exp_avg"])
            part.mul_(1 - group["lr"] * group["weight_decay"])
            part.add_(mean.lerp(gradient, 1 - ahead).sign_(), alpha=-group["lr"])
            mean.lerp_(gradient, 1 - kept)


class Adafactor(torch.optim.Optimizer):
    """Divide gradients by the root of their running mean square, of which one number per row and per column is kept.

        R = mean over columns of g²   C = mean over rows   V = R C / mean R   u = g / √V   (vectors: V in full)
        w -= max(0.001, RMS w)·min(lr, 1/√t) / max(1, RMS u)·u               t the step; R and C decay with t^-0.8

    Source: Shazeer & Stern 2018, arXiv:1804.04235; the numbers are those of torch.optim.Adafactor, which takes no
    DTensors. Sums over the rows of a matrix go over the ranks that hold them, all weights in two collectives of a step.
    """

    SMALLEST = torch.finfo(torch.float32).eps
    SMALLEST_RMS = 1e-3

    def __init__(self, groups: Groups):
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step. A collective over the ranks that share the weights."""
        found = list(_with_gradient(self.param_groups))
        weights = [weight for _, weight, _, _ in found]
        sums = _summed(weights, [self._look(weight, part, gradient) for _, weight, part, gradient in found])
        for (_, weight, _, gradient), (_, of_rows, *columns) in zip(found, sums, strict=True):
            gradient.mul_(self._variance(weight, of_rows, columns).rsqrt_())
        squares = _summed(weights, [[_square_sum(gradient)] for _, _, _, gradient in found])
        for (group, weight, part, update), (of_weight, *_), (of_update,) in zip(found, sums, squares, strict=True):
            rate = min(group["lr"], self.state[weight]["step"] ** -0.5)
            size = (of_weight / weight.numel()).sqrt().clamp(min=self.SMALLEST_RMS)
            length = rate * size / (of_update / weight.numel()).sqrt().clamp(min=1.0)
            part.mul_(1 - group["lr"] * group["weight_decay"])
            part.sub_(update.mul_(length.to(update.dtype)))

    def _look(self, weight: torch.Tensor, part: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
        """Return Σ w², Σ R and, of a matrix, Σ over rows of g² [I] of this rank's part. Brings R up to date."""
        state = self.state[weight]
        if not state:
            state.update(self._nothing_yet(weight, part), step=0)
        state["step"] += 1
        share, squares = state["step"] ** -0.8, gradient.float().square()
        if weight.ndim < 2:
            local_part(state["variance"]).lerp_(squares, share)
            return [_square_sum(part), part.new_zeros((), dtype=torch.float64)]
        rows = local_part(state["row_var"]).lerp_(squares.mean(dim=-1, keepdim=True), share)
        if weight.ndim > 2:  # each matrix lies whole on one rank
            local_part(state["col_var"]).lerp_(squares.mean(dim=-2, keepdim=True), share)
            return [_square_sum(part), part.new_zeros((), dtype=torch.float64)]
        return [_square_sum(part), rows.sum(dtype=torch.float64), squares.sum(dim=0, dtype=torch.float64)]

    def _variance(self, weight: torch.Tensor, of_rows: torch.Tensor, columns: list[torch.Tensor]) -> torch.Tensor:
        """Return V of this rank's part. of_rows and columns: Σ R and Σ over rows of g², of the whole matrix."""
        state = self.state[weight]
        if weight.ndim < 2:
            return local_part(state["variance"]).clamp(min=self.SMALLEST**2)
        rows, of_columns = local_part(state["row_var"]), local_part(state["col_var"])
        if weight.ndim > 2:
            mean = rows.mean(dim=-2, keepdim=True)
        else:
            of_columns.lerp_((columns[0] / len(weight)).float()[None], state["step"] ** -0.8)
            mean = (of_rows / len(weight)).float()
        return (rows @ of_columns).div_(mean.clamp(min=self.SMALLEST)).clamp_(min=self.SMALLEST**2)

    def _nothing_yet(self, weight: torch.Tensor, part: torch.Tensor) -> dict[str, torch.Tensor]:
        if weight.ndim < 2:
            return {"variance": torch.zeros_like(weight, dtype=torch.float32)}
        rows = torch.zeros(*part.shape[:-1], 1, device=part.device)
        columns = torch.zeros(*part.shape[:-2], 1, part.shape[-1], device=part.device)
        return {
            "row_var": as_part_like(weight, rows, (*weight.shape[:-1], 1)),
            "col_var": as_part_like(weight, columns, (*weight.shape[:-2], 1, weight.shape[-1]), whole=weight.ndim == 2),
        }


def _square_sum(part: torch.Tensor) -> torch.Tensor:
    return part.float().square().sum(dtype=torch.float64)


def _summed(weights: Sequence[torch.Tensor], found: Sequence[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """Add what each rank found of its parts of `weights`, in one collective over the ranks that share them."""
    flat = torch.cat([tensor.reshape(-1) for tensors in found for tensor in tensors]) if found else None
    if flat is not None and isinstance(weights[0], DTensor):
        dist.all_reduce(flat, group=weights[0].device_mesh.get_group(mesh_dim=-1))  # the last axis is cut
    pieces = (
        iter(flat.split([tensor.numel() for tensors in found for tensor in tensors])) if flat is not None else iter(())
    )
    return [[next(pieces).view(tensor.shape) for tensor in tensors] for tensors in found]
