"""Every test of this folder needs a CUDA device, one is enough; all together take some six minutes on an H100.

Of their own process is what starts a run: a device that failed in one test must not fail the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.assets import tiny_model_dir, write_jsonl
from tests.launch import read_metrics, succeed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a small run on 8 rows of uneven length, four to a step."""
    home = tmp_path_factory.mktemp("base")
    rows = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}. " * (1 + k)} for k in range(8)]
    return [
        f"model.partial_pretrain={tiny_model_dir(home / 'model')}",
        f"data.train_files={write_jsonl(home / 'train.jsonl', rows)}",
        "data.val_files=null",
        f"data.cache_dir={home / 'cache'}",
        "data.train_batch_size=4",
        "data.micro_batch_size_per_gpu=2",
        "optim.lr=1e-2",
        "optim.lr_scheduler=constant",
        "optim.warmup_steps_ratio=0",
        "trainer.total_training_steps=4",
    ]


Runs = Callable[..., tuple[list[list[float]], str]]


@pytest.fixture(scope="session")
def run_in_turn(base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """run_in_turn({name: overrides}, home, device="0") -> (losses of every run, what they printed), of one process.

    Runs of one name share a directory: the later ones resume. device: CUDA_VISIBLE_DEVICES
    """

    def run(runs: list[tuple[str, list[str]]], home: Path | None = None, device: str = "0"):
        home = home or tmp_path_factory.mktemp("runs")
        placed = [[*base, *more, f"trainer.default_local_dir={home / name}"] for name, more in runs]
        (home / "runs.json").write_text(json.dumps(placed))
        environment = {"CUDA_VISIBLE_DEVICES": device}
        done = succeed(
            [str(home / "runs.json")], ranks=1, cwd=home, module="tests.dist.several", env=environment, timeout_s=280
        )
        losses = [[line["train/loss"] for line in read_metrics(home / name)] for name, _ in runs]
        return losses, done.stdout + done.stderr

    return run
