"""Real torchrun on gloo with a tiny random model: what every test of this folder starts from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.assets import tiny_model_dir, write_jsonl
from tests.launch import train_all


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.dist)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a small fp32 run on 10 rows of uneven length: batch 4, so an epoch is 4 + 4 + 2 samples."""
    home = tmp_path_factory.mktemp("base")
    tiny_model_dir(home / "model")
    rows = [
        {"question": f"What is {k} + {k * 37}? " * (1 + k % 3), "answer": f"{k * 38}. " * (1 + k)} for k in range(10)
    ]
    write_jsonl(home / "train.jsonl", rows)
    write_jsonl(home / "val.jsonl", rows[:7])
    return [
        f"model.partial_pretrain={home / 'model'}",
        f"data.train_files={home / 'train.jsonl'}",
        f"data.val_files={home / 'val.jsonl'}",
        f"data.cache_dir={home / 'cache'}",
        "data.train_batch_size=4",
        "data.micro_batch_size_per_gpu=2",
        "model.fsdp_config.compute_dtype=fp32",
        "optim.lr=1e-2",
        "optim.lr_scheduler=constant",
        "optim.warmup_steps_ratio=0",
        "trainer.test_freq=0",
    ]


@pytest.fixture
def run_all(tmp_path: Path) -> Callable[[Sequence[Sequence[str]], int], list[list[dict]]]:
    """Runs several configurations on some ranks; returns the lines of metrics.jsonl of each.

    They run in call_<number of the call>/run_<number in it>: in a directory of an earlier call they would resume.
    """
    calls = itertools.count()

    def run_all(runs: Sequence[Sequence[str]], ranks: int, module: str = "tests.dist.several") -> list[list[dict]]:
        return train_all(tmp_path / f"call_{next(calls)}", runs, ranks, module)

    return run_all
