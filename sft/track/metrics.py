"""Turn what a step did (StepStats) into named numbers: loss, speed, memory.

FLOP = one multiplication or one addition; GB = 1e9 bytes; s = seconds.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from sft.types import Counts, StepStats

# Dense bf16 FLOP/s by the makers' data sheets. The first name found in the device's name wins: longer names first.
PEAK_BF16_FLOPS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "MI300X": 1307e12,
}


def met_by_a_token(weights: Iterable[torch.Tensor], experts: int | None) -> int:
    """Count the elements of `weights` that one token is multiplied with: it is sent to some of the experts only.

    A weight with three dims, [number of experts, ., .], holds all experts of a layer.
    experts: how many of them a token is sent to; None for a model without experts
    """
    return sum(w.numel() // len(w) * experts if experts and w.ndim == 3 else w.numel() for w in weights)


def training_flops_per_token(
    num_params: int, num_layers: int, attention_width: int, mean_seq_len: float, *, num_frozen_params: int = 0
) -> float:
    """Return the forward and backward FLOPs per token of a causal transformer: 6·N + 6·L·H·s.

    num_params:        N, weights that meet every token in a matmul: the embedding lookup does none, an LM head
                       counts only if it runs on every token (see Meter for one that does not)
    attention_width:   H, heads times head_dim
    mean_seq_len:      s, as a token sees it: Σ len² / Σ len over the samples
    num_frozen_params: of N, weights that need no gradient of their own (LoRA): 4 FLOPs per token instead of 6

    Source: Kaplan et al. 2020 (6·N) and PaLM appendix B (12·L·H·s for attention, Chowdhery et al. 2022), halved
    because a causal token looks, on average, at half of its sample. Recomputation is not counted: MFU, not HFU.
    """
    return 6.0 * num_params - 2.0 * num_frozen_params + 6.0 * num_layers * attention_width * mean_seq_len


@dataclass(frozen=True)
class Peak:
    """What MFU is measured against: FLOP/s of one device (None: not known), and where the figure comes from."""

    flops: float | None
    source: str


def device_peak(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Peak:
    """Return the dense peak of a GPU in `dtype`, from its data sheet where that is known.

    A rate that was probed would be no peak: other programs, clocks and the shape of the probe decide about it.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    if dtype == torch.bfloat16:
        for model, flops in PEAK_BF16_FLOPS.items():
            if model in name:
                return Peak(flops, f"mfu relative to the data sheet of {model}: {flops / 1e12:.0f} TFLOP/s bf16")
    kind = str(dtype).removeprefix("torch.")
    return Peak(None, f"no mfu: the peak of {name} in {kind} is not known here")


def peak_memory_gb() -> float:
    """Return the most memory that this process ever held, in GB: allocated on the CUDA device, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9  # macOS counts bytes, Linux KiB


@dataclass(frozen=True)
class _Step:
    seconds: float
    data_wait_s: float
    counts: Counts


@dataclass
class Meter:
    """One metric dict per step: `train/*` tells of that step alone, `perf/*` of the last `window` steps together.

    With window = log_freq a printed line speaks for all steps since the line before. Rates count real tokens, never
    padding. `perf/data_wait_s` and `perf/step_time_s` are means per step, on this rank.
    """

    world_size: int
    samples_per_epoch: int
    flops_per_token: float
    peak_flops: float | None  # of one device; None: not known
    flops_per_supervised_token: float = 0.0  # of an LM head that runs only where a token carries loss: 6 per weight
    window: int = 1
    samples_seen: int = 0  # before this process
    tokens_seen: int = 0
    clock: Callable[[], float] = time.perf_counter  # in seconds

    def __post_init__(self) -> None:
        self._recent: deque[_Step] = deque(maxlen=self.window)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin the next step now. Call it after log, validation and checkpoint: their time is not training time."""
        self._step_began = self.clock()

    def measure(self, stats: StepStats, data_wait_s: float) -> dict[str, float]:
        """Return the metrics of the step that just ended, and begin the next one."""
        now = self.clock()
        self._recent.append(_Step(now - self._step_began, data_wait_s, stats.counts))
        self._step_began = now
        self.samples_seen += stats.counts.samples
        self.tokens_seen += stats.counts.tokens
        return {
            "train/loss": stats.loss,
            "train/grad_norm": stats.grad_norm,
            "train/lr": stats.lr,
            "train/epoch": self.samples_seen / self.samples_per_epoch,
            "train/num_input_tokens_seen": self.tokens_seen,
            **_of_experts(stats),
            **self._performance(),
        }

    def _performance(self) -> dict[str, float]:
        steps = len(self._recent)
        seconds = sum(step.seconds for step in self._recent)
        counts = sum((step.counts for step in self._recent), Counts())
        flops = self.flops_per_token * counts.tokens + self.flops_per_supervised_token * counts.supervised_tokens
        device_seconds = seconds * self.world_size
        return {
            "perf/tokens_per_sec_per_gpu": counts.tokens / device_seconds,
            **({"perf/mfu": flops / device_seconds / self.peak_flops} if self.peak_flops else {}),
            "perf/max_memory_allocated_gb": peak_memory_gb(),
            "perf/padding_frac": counts.padding / counts.positions,
            "perf/supervised_frac": counts.supervised_tokens / counts.tokens,
            "perf/data_wait_s": sum(step.data_wait_s for step in self._recent) / steps,
            "perf/step_time_s": seconds / steps,
        }


def _of_experts(stats: StepStats) -> dict[str, float]:
    told = {
        "train/router_aux_loss": stats.router_aux_loss,
        "train/largest_expert_share": stats.largest_expert_share,
    }
    return {name: value for name, value in told.items() if value is not None}
