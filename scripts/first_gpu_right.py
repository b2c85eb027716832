"""What first_gpu.py compares on a device: kernels with the formula, the loss with whole logits, and what may not be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F

from sft.model import head
from sft.model.attention import kernels
from sft.model.attention.choice import KERNELS
from sft.model.attention.interface import load_kernel
from sft.model.attention.kernels import Samples, Scores
from sft.model.loss_form import LOSS_KERNELS, LogitForm, LossKernel
from sft.train.loss import token_ce_sum
from sft.types import Batch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = 2e-2
"""Largest difference, as a share of the largest number, that 16 bits may make."""


def kernels_against_the_formula(width: int, *, tokens: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every kernel with its largest differences, of the output and of three gradients, on a ragged row."""
    torch.manual_seed(0)
    lengths = [tokens // 2, 1, tokens // 4, tokens - tokens // 2 - tokens // 4 - 1]
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=DEVICE)
    samples = Samples(tuple(lengths), ends, max(lengths))
    q, k, v, direction = (torch.randn(tokens, n, width, device=DEVICE, dtype=torch.bfloat16) for n in (8, 2, 2, 8))
    for name in KERNELS:
        for window in (None, tokens // 8):
            scores = Scores(width**-0.5, window=window)
            told = name if window is None else f"{name} with a window"
            try:
                found = _with_gradients(load_kernel(name), q, k, v, direction, samples, scores)
            except Exception as error:  # it cannot run here, and says why
                yield told, {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"}
                continue
            exact = _with_gradients(
                _by_the_formula, q.float(), k.float(), v.float(), direction.float(), samples, scores
            )
            off = [largest_difference(mine, right) for mine, right in zip(found, exact, strict=True)]
            yield told, {"off": off, "right": max(off) < HALF}


def _with_gradients(kernel: Any, q: Any, k: Any, v: Any, direction: Any, *how: Any) -> list[torch.Tensor]:
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    output = kernel(*inputs, *how)
    return [output, *torch.autograd.grad(output, inputs, direction.to(output.dtype))]


def _by_the_formula(q: Any, k: Any, v: Any, samples: Samples, scores: Scores) -> torch.Tensor:
    parts = zip(*(x.transpose(0, 1)[None].split(list(samples.lengths or ()), dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([kernels._by_the_formula(q, k, v, scores)[0].transpose(0, 1) for q, k, v in parts])


def largest_difference(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest number."""
    return ((found.float() - exact.float()).abs().max() / exact.float().abs().max()).item()


def losses_against_whole_logits(rows: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every way to compute the fused loss with its differences from whole logits, capped ones too."""
    for name, kernel in LOSS_KERNELS.items():
        for form in (LogitForm(), LogitForm(cap=5.0)):
            told = f"loss by {name}{', capped' if form.cap else ''}"
            try:
                yield told, loss_against_whole_logits(rows, form, kernel)
            except Exception as error:  # it cannot run here, and says why
                yield told, {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"}


def loss_against_whole_logits(
    rows: int, form: LogitForm, kernel: LossKernel, *, width: int = 256, vocabulary: int = 5000
) -> dict[str, Any]:
    """Compare the fused loss and its gradients, in bf16, with whole logits in fp32."""
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, width, device=DEVICE, dtype=torch.bfloat16) for n in (rows, vocabulary))
    hidden, weight = (x.mul_(0.3).requires_grad_() for x in (hidden, weight))
    labels, weights = torch.randint(vocabulary, (rows,), device=DEVICE), torch.rand(rows, device=DEVICE) / rows
    ours, _, _ = head.linear_ce_sum(hidden, weight, None, labels, weights, form, kernel=kernel)
    logits = hidden.float() @ weight.float().T
    logits = logits if form.cap is None else form.cap * torch.tanh(logits / form.cap)
    whole = (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
    found = [ours, *torch.autograd.grad(ours, (hidden, weight))]
    exact = [whole, *torch.autograd.grad(whole, (hidden, weight))]
    off = [largest_difference(mine, right) for mine, right in zip(found, exact, strict=True)]
    return {"off": off, "right": max(off) < HALF}


def nothing_waits(job: Any, batch: Batch) -> str:
    """Run a micro-batch where torch raises an error for whatever makes the host wait."""
    if DEVICE.type != "cuda":
        return "left out: no CUDA"
    batch = batch.pinned()
    token_ce_sum(job.model, batch.to(DEVICE))[0].backward()  # the first one may wait: kernels are loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        token_ce_sum(job.model, batch.to(DEVICE))[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "right"


def no_sticky_error() -> str:
    """Lock memory that is locked already, which fails, and launch a kernel, which must not hear of it."""
    if DEVICE.type != "cuda":
        return "left out: no CUDA"
    from sft.parallel import host_memory

    block = torch.empty(2**20, dtype=torch.uint8)
    for _ in range(2):  # the second time it is locked already
        host_memory._lock_pages(block)
    torch.zeros(8, device=DEVICE).add_(1)
    torch.cuda.synchronize()
    return "right"
