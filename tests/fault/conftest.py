"""One command, one uninterrupted run of it to compare with, and the table of what was survived."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.assets import tiny_model_dir, write_jsonl
from tests.fault.faults import SAVE_FREQ, STEPS, Run, curve
from tests.launch import succeed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.fault)


@dataclass
class Row:
    """One class of faults. Steps lost: of the worst case; None where nothing can be lost."""

    injected: int = 0
    survived: int = 0
    lost: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # from the fault to the first step of the next life
    damaged: int = 0
    detected: int = 0


ROWS: dict[str, Row] = defaultdict(Row)


@pytest.fixture(scope="session")
def rows() -> dict[str, Row]:
    """What was injected and survived, by class; printed at the end."""
    return ROWS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not ROWS:
        return
    write = terminalreporter.write_line
    write("")
    write("| fault | injected | survived | steps lost, at most | first step again after, median | damaged | detected |")
    write("|---|---|---|---|---|---|---|")
    for name, row in ROWS.items():
        lost = str(max(row.lost)) if row.lost else ""
        seconds = f"{sorted(row.seconds)[len(row.seconds) // 2]:.1f} s" if row.seconds else ""
        damage = [str(row.damaged), str(row.detected)] if row.damaged else ["", ""]
        write("| " + " | ".join([name, str(row.injected), str(row.survived), lost, seconds, *damage]) + " |")


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a small fp32 run of many steps with a schedule, two dozens of steps a second and more."""
    home = tmp_path_factory.mktemp("faults")
    tiny_model_dir(home / "model")
    rows = [
        {"question": f"What is {k} + {k * 37}? " * (1 + k % 3), "answer": f"{k * 38}. " * (1 + k)} for k in range(10)
    ]
    write_jsonl(home / "train.jsonl", rows)
    write_jsonl(home / "val.jsonl", rows * 20)
    return [
        f"model.partial_pretrain={home / 'model'}",
        f"data.train_files={home / 'train.jsonl'}",
        f"data.val_files={home / 'val.jsonl'}",
        f"data.cache_dir={home / 'cache'}",
        "data.train_batch_size=4",
        "data.micro_batch_size_per_gpu=2",
        "model.fsdp_config.compute_dtype=fp32",
        "optim.lr=1e-3",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.save_freq={SAVE_FREQ}",
        "trainer.max_ckpt_to_keep=3",
        "trainer.test_freq=0",
        "trainer.timeout_s=120",
    ]


@pytest.fixture(scope="session")
def reference(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[float, ...]]:
    """The curve of the run that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    succeed([*command, f"trainer.default_local_dir={run_dir}"], ranks=2, cwd=run_dir.parent)
    straight = curve(run_dir)
    assert len(straight) == STEPS
    return straight


@pytest.fixture
def run(command: list[str], reference: dict, tmp_path: Path) -> Iterator[Run]:
    """A run in a new directory."""
    run = Run(command, tmp_path, reference)
    yield run
    for life in run.lives:
        life.clear()
