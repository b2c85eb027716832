"""A run of two tiny matrices: everything a checkpoint does, in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sft.checkpoint import Kind, Saver
from sft.parallel.world import World
from sft.types import TrainState

ABOUT = {"job_id": "job", "base_model": "org/base", "steps_per_epoch": 5, "fingerprint": {"seed": 1, "lora": None}}


def small_model() -> torch.nn.Module:
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
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    saver = Saver(directory, world=world, about=about or ABOUT, keep=keep, in_background=in_background)
    return Run(directory, world, model, optimizer, saver, TrainState())


@pytest.fixture
def run(tmp_path, world_of_one) -> Run:
    return start_run(tmp_path / "job", world_of_one)


def names_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
