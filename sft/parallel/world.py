"""Say which rank this process is, and let ranks agree: sums, largest values, results, errors.

Every collective here says over whom it runs; every rank of that group must call it.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed import HashStore, PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from sft.config.secrets import presentable
from sft.errors import BugError, InputError, MishapError, OwnMishapError
from sft.files import is_of_the_machine
from sft.parallel.device import bound_kernel_caches, device_of, gpu_id, refuse_shared_gpus
from sft.parallel.lost_ranks import is_about_other_ranks, is_out_of_memory, who_is_lost

log = logging.getLogger("sft")
# peft imports bitsandbytes wherever it is installed, which on a CPU warns of a kernel that is not used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_RUNS = itertools.count()

Result = TypeVar("Result")
Name = TypeVar("Name")

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Set to 1, torchrun makes a new store for every start of the ranks."""

ALL_RANKS = None
"""The group of every rank of the run, as torch.distributed names it."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run; what `torchrun` put into the environment."""

    rank: int
    size: int
    local_rank: int
    restarts: int = 0  # how often torchrun has started the ranks again after a failure

    @classmethod
    def from_environment(cls) -> World:
        names = ("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(*(int(os.environ.get(name, default)) for name, default in names))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        return device_of(self.local_rank)


class LostRanksError(Exception):
    """Other ranks are gone or silent; the message says which, and what this one was waiting in."""


@contextmanager
def process_group(world: World, timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """Open the default process group for the length of the run. NCCL for CUDA tensors, gloo for CPU tensors.

    Without torchrun (`python -m sft.fsdp_sft_trainer`) it is a group of one that opens no port. Raises LostRanksError
    where another rank dies, or does not answer within `timeout`.
    """
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    else:
        bound_kernel_caches()
    if dist.is_initialized():  # a run that failed in this process left its group behind
        dist.destroy_process_group()
    store = _meet(world, timeout)
    # After an error nobody destroys the group: the others may be inside a collective, where NCCL would wait for them
    # and hide the error. The process ends instead, and torchrun ends the rest.
    try:
        if world.device.type == "cuda":
            refuse_shared_gpus(on_every_rank("start-up", lambda: gpu_id(world.device)))
        yield
    except RuntimeError as error:
        if is_about_other_ranks(error):
            _outlive_torchrun()
            raise LostRanksError(who_is_lost(store, world, timeout, _phase, error)) from error
        if is_out_of_memory(error):
            raise OwnMishapError(f"rank {world.rank} is out of memory in {_phase}: {error}") from error
        if "NCCL" in str(error):  # a driver, a card, a setting: nobody died of it
            raise OwnMishapError(f"NCCL failed on rank {world.rank} in {_phase}: {error}") from error
        raise
    # Model and optimizer hold references into the group. Destroying it before they are collected crashed
    # 12 of 57 gloo runs after their work was done; collecting first, none of 37.
    gc.collect()
    dist.destroy_process_group()


def _meet(world: World, timeout: timedelta) -> Store:
    """Wait until every rank is there and make the default group; returns the store.

    Raises LostRanksError, and InputError where another program has the port.
    """
    backend = "cuda:nccl,cpu:gloo" if world.device.type == "cuda" else "gloo"
    store = None
    try:
        # A world of one without torchrun opens no port.
        store = next(rendezvous("env://", timeout=timeout))[0] if "MASTER_ADDR" in os.environ else HashStore()
        store = PrefixStore(_keys_of_this_run(world), store)
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            port = os.environ.get("MASTER_PORT")
            raise InputError(
                f"port {port}, where the ranks are to meet, is in use on this machine, by another run perhaps. Choose "
                "another one: MASTER_PORT=29501, say, on every rank; torchrun --standalone finds a free one by itself."
            ) from error
        _outlive_torchrun()
        raise LostRanksError(who_is_lost(store, world, timeout, _phase, error)) from error
    return store


def _keys_of_this_run(world: World) -> str:
    """Return a prefix of its own for every run: torchrun's store still holds the keys of earlier ones.

    Of earlier runs in this process, and of the ranks that `torchrun --max-restarts` has replaced. Restarts are counted
    per node: on several, the counts may differ, and each restart needs a store of its own instead.
    """
    read = os.environ.get
    one_node = read("GROUP_WORLD_SIZE", "1") == "1"
    restarts = read("TORCHELASTIC_RESTART_COUNT", "0") if one_node else "n"
    if not one_node and read("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and read(OWN_STORE, "0") != "1" and world.is_main:
        log.warning(
            "torchrun --max-restarts on several nodes: a restart will hang, for its ranks meet at the store of those "
            "that died. Set %s=1 on every node, as scripts/train.sh does.",
            OWN_STORE,
        )
    return f"sft_run_{next(_RUNS)}_{restarts}"


_phase = "start-up"


def entering(phase: str) -> None:
    """Note which phase this rank enters ('step 12', 'evaluation'): messages about lost ranks say what it did."""
    global _phase
    _phase = phase


def phase() -> str:
    """Return what `entering` noted last."""
    return _phase


def _outlive_torchrun() -> None:
    """Let its SIGTERM pass, which follows the death of any rank at once: first it is to be said what happened."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def sum_over(group: dist.ProcessGroup | None, *values: float | torch.Tensor) -> list[float]:
    """Return the sums of `values` over every rank of `group`, exact in float64, on every rank.

    Plain numbers travel by gloo and never wait for the device. With scalars of a device among them, the sum is made
    there, and the host waits for it once.
    """
    return sum_on_device(group, *values).tolist()


def sum_on_device(group: dist.ProcessGroup | None, *values: float | torch.Tensor) -> torch.Tensor:
    """Return the sums of `sum_over` as a float64 tensor [number of values]: the host does not wait for them."""
    devices = [value.device for value in values if isinstance(value, torch.Tensor)]
    total = torch.tensor([0.0 if isinstance(value, torch.Tensor) else value for value in values], dtype=torch.float64)
    if devices and devices[0].type != "cpu":
        total = total.pin_memory().to(devices[0], non_blocking=True)  # from pageable memory, the host would wait
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            total[index] = value.detach()
    if total.device.type != "cpu" and group is ALL_RANKS:
        # By gloo, which notices a rank that died. NCCL does not: who reads the sum would wait until it is killed.
        dist.all_reduce(torch.zeros(()), group=group)
    dist.all_reduce(total, group=group)
    return total


def sum_by_name(group: dist.ProcessGroup | None, values: Mapping[Name, float | torch.Tensor]) -> dict[Name, float]:
    """As `sum_over`, by name: the sum of each of `values`. The names, and their order, are the same on every rank."""
    return dict(zip(values, sum_over(group, *values.values()), strict=True))


def max_over_all_ranks(*values: float) -> list[float]:
    """Return the largest of each of `values` over every rank, on every rank."""
    largest = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=ALL_RANKS)
    return largest.tolist()


def on_every_rank(phase: str, work: Callable[[], Result]) -> list[Result]:
    """Run `work` on every rank and return the results of all of them, on all ranks. Every rank calls it.

    If it fails on one rank, every rank raises and none waits: InputError where the input was wrong, MishapError where
    the machine failed, and BugError, whose cause is kept on the rank where it happened, for anything else.
    """
    entering(phase)
    result, failure, kind, caught = None, None, InputError, None
    try:
        result = work()
    except Exception as error:  # whatever it is: the others are waiting to hear of it
        if isinstance(error, RuntimeError) and is_about_other_ranks(error):
            raise  # there is nobody left to tell
        failure, kind, caught = f"rank {dist.get_rank()}: {type(error).__name__}: {error}", _kind_of(error), error
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (result, failure, kind))
    if failures := [failure for _, failure, _ in outcomes if failure]:
        kinds = {kind for _, _, kind in outcomes}
        worst = next(kind for kind in (BugError, MishapError, InputError) if kind in kinds)
        raise worst(f"{phase} failed: {'; '.join(failures)}") from (caught if kind is worst else None)
    return [result for result, _, _ in outcomes]


def _kind_of(error: Exception) -> type[Exception]:
    """Return what an error is when all ranks raise it: the input's fault, the machine's, or ours."""
    if isinstance(error, InputError):
        return MishapError if isinstance(error, MishapError) else InputError
    # safetensors raises an error of its own where its file cannot be written or read.
    of_a_file = isinstance(error, OSError | SafetensorError)
    is_machines = of_a_file or is_out_of_memory(error) or is_of_the_machine(error)
    return MishapError if is_machines else BugError


def on_main_rank(phase: str, work: Callable[[], Result]) -> Result:
    """Run `work` on rank 0 and return its result on all ranks. If it fails, all raise, as in `on_every_rank`."""
    return on_every_rank(phase, work if dist.get_rank() == 0 else lambda: None)[0]  # pyright: ignore[reportReturnType]


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (CPU and CUDA) alike on every rank."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_rank(seed: int, world: World) -> None:
    """Let every rank draw random numbers of its own from here on: dropout masks must differ between ranks.

    Resuming puts the random state of the checkpoint in their place.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, world.rank]).generate_state(1, np.uint64)[0]))


class _Presentable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return super().format(
            logging.makeLogRecord(vars(record) | {"msg": presentable(record.getMessage()), "args": ()})
        )


def log_on_main_rank_only(world: World) -> None:
    """Show `log.info` and louder once per run, not once per rank; libraries speak only on rank 0 as well."""
    handler = logging.StreamHandler(sys.stderr)
    clean_line = "\r\033[K" if sys.stderr.isatty() else ""  # where the progress bar of a head start may stand
    handler.setFormatter(_Presentable(f"{clean_line}%(message)s"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if world.is_main else logging.CRITICAL)
    if not world.is_main:
        logging.getLogger("transformers").setLevel(logging.CRITICAL)
