"""Which device a rank takes, on machines that are not here."""

import logging
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from sft.errors import InputError
from sft.evaluate.run import evaluate
from sft.fsdp_sft_trainer import run
from sft.parallel import device
from sft.parallel.device import (
    KERNEL_CACHES,
    KERNELS_KEPT,
    bound_kernel_caches,
    device_of,
    refuse_ranks_without_a_gpu,
    refuse_shared_gpus,
    why_on_the_cpu,
)
from sft.parallel.world import World


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend that this machine has so many GPUs, a driver, and a torch for so many of them."""

    def machine(*, gpus=0, driver=False, cuda=None, ranks=1):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(device, "NVIDIA_DEVICE", tmp_path if driver else tmp_path / "absent")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return machine


@pytest.mark.parametrize(("ranks", "gpus", "refused"), [(2, 2, False), (3, 2, True), (4, 0, False), (4, 1, False)])
def test_more_ranks_than_gpus_are_refused_on_all_of_them(machine, ranks, gpus, refused):
    machine(gpus=gpus, ranks=ranks)
    with pytest.raises(InputError, match="3 ranks and shows 2 GPUs") if refused else nullcontext():
        refuse_ranks_without_a_gpu()


def test_a_launcher_may_show_every_rank_one_gpu(machine):
    machine(gpus=1, ranks=4)
    assert device_of(3) == torch.device("cuda", 0)
    machine(gpus=4, ranks=4)
    assert device_of(3) == torch.device("cuda", 3)
    machine(gpus=0)
    assert device_of(3) == torch.device("cpu")


@pytest.mark.parametrize(
    ("threads", "ranks", "told"), [("1", 4, "OMP_NUM_THREADS=4"), ("4", 4, None), ("1", 16, None), (None, 4, None)]
)
def test_a_rank_that_computes_on_one_core_of_its_share_is_told(threads, ranks, told, monkeypatch):
    """torchrun sets it; with cpu_offload the optimizer would take minutes."""
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setenv("OMP_NUM_THREADS", threads) if threads else monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    said = device.why_one_thread()
    assert (told in said) if told else said is None


def test_two_ranks_on_one_gpu_are_refused_once_they_can_talk():
    refuse_shared_gpus(["a", "b"])
    refuse_shared_gpus([None, None])  # on CPUs
    with pytest.raises(InputError, match=r"the same GPU \(ranks 0, 2\): start at most one rank per GPU"):
        refuse_shared_gpus(["a", "b", "a"])


def test_a_gpu_that_is_not_used_is_said(machine, monkeypatch):
    machine(driver=True)
    assert "is a build for CPUs" in (why_on_the_cpu() or "")
    machine(driver=True, cuda="13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: (_ for _ in ()).throw(RuntimeError("driver too old\nmore")))
    assert "cannot use it (driver too old)" in (why_on_the_cpu() or "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert why_on_the_cpu() is None
    machine(gpus=1, driver=True, cuda="13.0")
    assert why_on_the_cpu() is None
    machine()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "MPS" in (why_on_the_cpu() or "")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert why_on_the_cpu() is None


class Begun(Exception):
    """A command has looked at the machine."""


@pytest.mark.parametrize(
    ("room", "command"),
    [
        ("sft.fsdp_sft_trainer", lambda config, _: run(config)),
        ("sft.evaluate.run", lambda config, world: evaluate(config, SimpleNamespace(), world)),
    ],
)
def test_training_and_evaluation_look_at_the_machine_first(room, command, monkeypatch, caplog):
    def begin(_):
        raise Begun

    asked = []
    monkeypatch.setattr(logging.getLogger("sft"), "propagate", True)
    monkeypatch.setattr(f"{room}.log_on_main_rank_only", lambda _: None)  # it would take the messages for itself
    monkeypatch.setattr(f"{room}.refuse_ranks_without_a_gpu", lambda: asked.append(1))
    monkeypatch.setattr(f"{room}.why_on_the_cpu", lambda: "its driver is broken.")
    monkeypatch.setattr(f"{room}.seed_everything", begin)
    config = SimpleNamespace(trainer=SimpleNamespace(seed=0, default_local_dir="run"))
    with pytest.raises(Begun):
        command(config, World.from_environment())
    assert asked and "on the CPU: its driver is broken." in caplog.text


ROWS_OF_EVER_NEW_LENGTHS = """
import torch
from pathlib import Path
from sft.parallel.device import bound_kernel_caches

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

bound_kernel_caches()
layers = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.Linear(256, 128)).bfloat16()
before = resident()
for length in range(200, 280):
    layers(torch.randn(length, 128, dtype=torch.bfloat16, requires_grad=True)).sum().backward()
print(resident() - before)
"""


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 kernels for this CPU")
def test_rows_of_ever_new_lengths_do_not_fill_the_memory():
    """In a process of its own, for the limits are read once. Without them it grows by 300 MB."""
    environment = {name: value for name, value in os.environ.items() if name not in KERNEL_CACHES}
    command = [sys.executable, "-c", ROWS_OF_EVER_NEW_LENGTHS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    assert int(done.stdout) < 200e6


def test_a_limit_of_ones_own_stays(monkeypatch):
    monkeypatch.setenv(KERNEL_CACHES[0], "7")
    monkeypatch.delenv(KERNEL_CACHES[1], raising=False)
    bound_kernel_caches()
    assert [os.environ[name] for name in KERNEL_CACHES] == ["7", str(KERNELS_KEPT)]
