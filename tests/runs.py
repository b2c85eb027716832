"""Runs of one process, small enough for a unit test: two matrices and a Saver, or a tiny model from a command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sft import load_config, run
from sft.checkpoint import Kind, Saver
from sft.parallel.world import World
from sft.types import TrainState
from tests.assets import write_jsonl

ABOUT = {"job_id": "job", "base_model": "org/base", "steps_per_epoch": 5, "fingerprint": {"seed": 1, "lora": None}}
ROWS = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}."} for k in range(8)]


def small_model() -> torch.nn.Module:
    """Build two matrices, which make a checkpoint of milliseconds."""
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))


@dataclass
class Run:
    """What a job holds of model, optimizer and state; `save` trains one step less than its caller would."""

    dir: Path
    world: World
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    saver: Saver
    state: TrainState

    def train_to(self, step: int) -> None:
        while self.state.step < step:
            self.model(torch.randn(3, 4)).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.state.step += 1
            self.state.updates += 1
            self.state.samples_seen += 8

    def save(self, kind: Kind, *, wait: bool = True) -> Path | None:
        return self.saver.save(kind, self.state, self.model, self.optimizer, write_model=write_model, wait=wait)


def write_model(target: Path) -> None:
    """Write what stands for a Hugging Face model in these checkpoints."""
    target.mkdir()
    (target / "config.json").write_text("{}")
    (target / "model.safetensors").write_bytes(b"weights")


def start_run(
    directory: Path,
    world: World,
    *,
    keep: int | None = None,
    about: dict | None = None,
    in_background: bool = True,
) -> Run:
    """Build a model of two matrices, its optimizer and a Saver that writes into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    saver = Saver(directory, world=world, about=about or ABOUT, keep=keep, in_background=in_background)
    return Run(directory, world, model, optimizer, saver, TrainState())


def names_in(directory: Path) -> list[str]:
    """Return the paths of all files below a directory, relative to it and sorted."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def train(home: Path, model: Path, *overrides: str) -> Path:
    """Train 4 steps and return the run directory: global_step_2 is STATE, 3 is SAMPLER, 4 is BOTH."""
    write_jsonl(home / "train.jsonl", ROWS)
    config = [
        f"model.partial_pretrain={model}",
        f"data.train_files={home / 'train.jsonl'}",
        "data.val_files=null",
        f"data.cache_dir={home / 'cache'}",
        "data.train_batch_size=4",
        "model.fsdp_config.compute_dtype=fp32",
        "optim.lr=1e-2",
        "trainer.total_training_steps=4",
        "trainer.save_freq=2",
        "trainer.save_hf_freq=3",
        f"trainer.default_local_dir={home / 'sums'}",
    ]
    run(load_config([*config, *overrides], warn=print))
    return home / "sums"
