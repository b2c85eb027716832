"""One command, one uninterrupted run of it to compare with, and the table of what was survived."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.assets import tiny_model_dir, write_jsonl
from tests.fault.faults import SAVE_FREQ, STEPS, Run, curve
from tests.launch import succeed

EXT4_IOC_SHUTDOWN, NO_FLUSH = 0x8004587D, (2).to_bytes(4, "little")

AT_ANY_TIME = ("test_cache", "test_lost", "test_moments", "test_texts")
"""Files whose faults do not need the machine for themselves: `make test` runs them beside others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.fault)
            if item.path.stem not in AT_ANY_TIME:
                item.add_marker(pytest.mark.alone)


@dataclass
class Row:
    """One class of faults. Steps lost: of the worst case; None where nothing can be lost."""

    injected: int = 0
    survived: int = 0
    lost: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # from the fault to the first step of the next life
    ended: list[float] = field(default_factory=list)  # seconds from the fault to the end of a rank
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
    heads = ["fault", "injected", "survived", "steps lost, at most", "first step again after, median"]
    heads += ["all ranks ended after, median, at most", "damaged", "detected"]
    write(f"| {' | '.join(heads)} |")
    write("|---" * len(heads) + "|")
    for name, row in ROWS.items():
        lost = str(max(row.lost)) if row.lost else ""
        seconds = f"{sorted(row.seconds)[len(row.seconds) // 2]:.1f} s" if row.seconds else ""
        ended = f"{sorted(row.ended)[len(row.ended) // 2]:.1f} s, {max(row.ended):.1f} s" if row.ended else ""
        damage = [str(row.damaged), str(row.detected)] if row.damaged else ["", ""]
        write("| " + " | ".join([name, str(row.injected), str(row.survived), lost, seconds, ended, *damage]) + " |")


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
    """The curve of the run that nothing happens to; it saves nothing on its way, which is quicker."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    succeed([*command, "trainer.save_freq=0", f"trainer.default_local_dir={run_dir}"], ranks=2, cwd=run_dir.parent)
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


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[..., None]]]:
    """(a mounted ext4 of its own, what cuts its power and brings it back); skips where that is not allowed.

    What cuts the power takes what is to happen between the cut and the return: processes that hold files there end.
    """
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    _run_or_skip("mkfs.ext4", "-q", "-F", str(image))
    _run_or_skip("mount", "-o", "loop", str(image), str(place))

    def cut_power(meanwhile: Callable[[], None] = lambda: None) -> None:
        descriptor = os.open(place, os.O_RDONLY)
        fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, NO_FLUSH)  # without the journal: what was not synced is lost
        os.close(descriptor)
        meanwhile()
        subprocess.run(["umount", str(place)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)

    yield place, cut_power
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 64 MB; skips where that is not allowed."""
    place = tmp_path / "small"
    place.mkdir()
    _run_or_skip("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _run_or_skip(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system may be made and mounted here: {error}")
