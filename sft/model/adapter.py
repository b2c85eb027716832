"""The numbers of a trained adapter, and the weight that it becomes a part of. Needs no peft."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Adapter:
    """The adapter of one module or of the experts of a layer, whole and in fp32 on the CPU."""

    a: torch.Tensor  # [R, I]; of experts [E·R, I]
    b: torch.Tensor  # [O, R]; of experts [O, R·E]
    magnitude: torch.Tensor | None  # [O], DoRA only
    scaling: float
    transposed: bool  # the module keeps its weight as [I, O] (GPT-2's Conv1D), its experts as [E, I, O] (gpt-oss)
    experts: int | None  # E; None for a module

    def merged_into(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight that does alone what `weight` and adapter do together; made in fp32, cast once."""
        rows = weight.float().mT if self.transposed else weight.float()
        a, b = self.a, self.b
        if self.experts is not None:
            a = a.unflatten(0, (self.experts, -1))  # [E, R, I]
            b = b.unflatten(1, (-1, self.experts)).permute(2, 0, 1)  # [E, O, R]
        rows = rows + self.scaling * (b @ a)
        if self.magnitude is not None:
            norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
            rows = rows * (self.magnitude / norm).float()[:, None]
        return (rows.mT if self.transposed else rows).to(dtype).contiguous()
