"""What is minimised, of which logits, and how it is computed: plain values, which the loss (head.py) goes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LogitForm:
    """What a model does to the output x of its LM head: z = cap·tanh(scale·x / cap), or scale·x without a cap."""

    scale: float = 1.0
    cap: float | None = None


@dataclass(frozen=True)
class LossForm:
    """What is minimised for a token, in place of its cross entropy ce = log Z - z[label], with p = exp z / Z:

        g·((1 - ε)·ce + ε·mean over v of (log Z - z[v])) + c·(log Z)²        ε = label_smoothing, c = z_loss

    The gate g is 1 for "ce", and takes no gradient:
        dft   p[label]: what the model finds unlikely moves it less (Wu et al. 2025, arXiv:2508.05629)
        eaft  the entropy of the 20 likeliest tokens among themselves, as a share of log 20: where the model is sure of
              something else, it is moved less (Diao et al. 2026, arXiv:2601.02151)
    Label smoothing: Szegedy et al. 2016, arXiv:1512.00567. z-loss: Chowdhery et al. 2022, arXiv:2204.02311.
    """

    kind: Literal["ce", "dft", "eaft"] = "ce"
    label_smoothing: float = 0.0
    z_loss: float = 0.0


CROSS_ENTROPY = LossForm()


@dataclass(frozen=True)
class LossKernel:
    """How the loss of a chunk and the gradient of its logits are computed: one choice of model.loss_kernel."""

    by_triton: bool = False  # by the one kernel of softmax_kernel.py, whose gradient takes the place of 16-bit logits
    fp32_logits: bool = False  # the matmul gives its sums as they are, in fp32, and does not round them to 16 bits

    def logit_bytes(self, compute_bytes: int) -> int:
        """Return the bytes that a logit of a chunk takes, with its gradient."""
        if compute_bytes == 4:
            return 4
        return compute_bytes if self.by_triton and not self.fp32_logits else compute_bytes + 4


BY_TORCH = LossKernel()
LOSS_KERNELS = {
    "auto": BY_TORCH,  # what has never run on a device is not its default there: scripts/first_gpu.py compares them
    "torch": BY_TORCH,
    "torch_fp32": LossKernel(fp32_logits=True),
    "triton": LossKernel(by_triton=True),
    "triton_fp32": LossKernel(by_triton=True, fp32_logits=True),
}
