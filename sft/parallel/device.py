"""Choose the device of a rank, and say why a machine that seems to have a GPU trains on its CPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from sft.errors import InputError

NVIDIA_DEVICE = Path("/dev/nvidiactl")
"""Is there where the NVIDIA driver runs, whatever torch can do with it."""


KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KERNELS_KEPT = 128
"""Those of a few lengths at once: each has some twenty shapes of matmuls, forward and backward."""


def device_of(local_rank: int) -> torch.device:
    """Return the GPU of a rank, or the CPU where torch can use none. A launcher may show every rank one GPU only."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", 0 if torch.cuda.device_count() == 1 else local_rank)


def bound_kernel_caches() -> None:
    """Limit how many compiled matmuls a process on a CPU keeps. Call it before the first of them.

    In bf16, oneDNN and torch's layer above it compile one for every new shape, and keep 1,024 of each: rows of ever
    new lengths took 1.1 GB of memory on a model of 0.1 M parameters, and 0.15 GB with this limit.
    """
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, str(KERNELS_KEPT))


def why_on_the_cpu() -> str | None:
    """Return why this process does not use the GPU that the machine has; None on a GPU, or where there is none."""
    if torch.cuda.is_available():
        return None
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None  # asked for
    if NVIDIA_DEVICE.exists():
        if torch.version.cuda is None:
            return (
                f"this machine has an NVIDIA GPU, but torch {torch.__version__} is a build for CPUs. Install one for "
                "CUDA (https://pytorch.org/get-started), or hide the GPU (CUDA_VISIBLE_DEVICES='')."
            )
        return (
            f"this machine has an NVIDIA GPU, but torch {torch.__version__} cannot use it ({_cuda_error()}). Compare "
            "`nvidia-smi` with the CUDA version that torch needs, or hide the GPU (CUDA_VISIBLE_DEVICES='')."
        )
    if torch.backends.mps.is_available():
        return "Apple's GPU (MPS) is not used: FSDP2 has no backend for it."
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return "Intel's GPU (XPU) is not used: this trainer knows CUDA and CPUs."
    return None


def why_one_thread() -> str | None:
    """Return why this process computes on one core although there are more for it; None where it does not."""
    share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if os.environ.get("OMP_NUM_THREADS") != "1" or share < 2:
        return None
    return (
        f"OMP_NUM_THREADS=1, which torchrun sets where nothing is set, gives each rank one core of {share}: set "
        f"OMP_NUM_THREADS={share}, as scripts/train.sh does."
    )


def _cuda_error() -> str:
    try:
        torch.cuda.init()
    except Exception as error:  # whatever the driver says is the reason
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return "torch.cuda.is_available() is false"


def refuse_ranks_without_a_gpu() -> None:
    """Raise InputError, on every rank of a node, where it has GPUs but fewer than ranks.

    One visible GPU may be another one for every rank; whether it is, `shared_gpus` tells once the ranks can talk.
    """
    ranks, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if torch.cuda.is_available() and ranks > gpus > 1:
        raise InputError(
            f"this node starts {ranks} ranks and shows {gpus} GPUs: start at most one rank per GPU (torchrun "
            "--nproc-per-node), or use the CPU (CUDA_VISIBLE_DEVICES='')."
        )


def gpu_id(device: torch.device) -> str | None:
    """Return the GPU's own number, which no two GPUs share; None for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def refuse_shared_gpus(ids: list[str | None]) -> None:
    """Raise InputError where two ranks use one GPU. ids: `gpu_id` of every rank, in their order."""
    ranks_of: dict[str, list[int]] = {}
    for rank, gpu in enumerate(ids):
        if gpu is not None:
            ranks_of.setdefault(gpu, []).append(rank)
    if shared := [ranks for ranks in ranks_of.values() if len(ranks) > 1]:
        told = "; ".join(f"ranks {', '.join(map(str, ranks))}" for ranks in shared)
        raise InputError(
            f"several ranks use the same GPU ({told}): start at most one rank per GPU (torchrun --nproc-per-node), or "
            "let the launcher show every rank one of its own (CUDA_VISIBLE_DEVICES)."
        )
