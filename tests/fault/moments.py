"""A whole run of one process, stopped at a chosen moment, hurt from outside, and started again.

A moment is the N-th call by which the run changes its directories (tests/fault/stops_itself.py). From the first, which
makes the token cache, to the last, which writes run.json, they lie everywhere in a run. What is left must be sound at
every one of them, and the same command must make of it what a run makes that nothing happens to.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from sft.checkpoint.find import problems_of
from sft.files import RunDir
from sft.track.files import read_metrics
from tests.assets import tiny_model_dir, write_jsonl
from tests.fault.faults import PATIENCE_S, curve
from tests.launch import clean_environment, kill_session, succeed, train, warm_process
from tests.warm import session_of

OF_THE_MODEL = ("config.json", "generation_config.json", "*.safetensors", "tokenizer*.json", "chat_template.jinja")


class Stopped:
    """A life of the command that stops itself before its N-th call below `place`; N = 0: it never does."""

    def __init__(self, overrides: list[str], place: Path, call: int, log: Path):
        self.calls = log.with_suffix(".calls")
        self._logs, self._warm = [log, log.with_suffix(".err")], warm_process()
        for path in (*self._logs, self.calls):
            path.write_bytes(b"")
        self._pid = self._warm.order(
            module="tests.fault.stops_itself",
            arguments=[str(place), str(call), str(self.calls), *overrides],
            ranks=0,
            cwd=str(log.parent),
            environment=clean_environment(),
            stdout=str(self._logs[0]),
            stderr=str(self._logs[1]),
        )

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return "".join(log.read_text(errors="replace") for log in self._logs)

    def stands(self) -> bool:
        """Wait until it has stopped itself, or has ended without: False."""
        deadline = time.monotonic() + PATIENCE_S
        while (state := state_of(self._pid)) not in ("T", None):
            assert time.monotonic() < deadline, f"neither stopped nor ended:\n{self.text}"
            time.sleep(0.005)
        return state == "T"

    def is_killed(self) -> None:
        """Kill it, with its children, and wait until none of them holds a file any more."""
        kill_session(self._pid, grace_s=0)
        assert self._warm.exit_code() == -signal.SIGKILL
        while session_of(self._pid):
            time.sleep(0.005)

    def goes_on(self) -> int:
        """Let it go on to its end, and return its exit code."""
        os.killpg(self._pid, signal.SIGCONT)
        return self.ends()

    def ends(self) -> int:
        """Wait for its end, and return its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while state_of(self._pid) is not None:
            assert time.monotonic() < deadline, f"it does not end:\n{self.text}"
            time.sleep(0.005)
        return self._warm.exit_code()


def state_of(pid: int) -> str | None:
    """Return the state of a process as ps shows it; None if it has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else state


@dataclass
class Whole:
    """A command, and what it makes where nothing happens to it."""

    command: list[str]
    curve: dict[int, tuple[float, ...]]
    model: dict[str, str]  # sha256 of the files of the published model
    calls: int

    @classmethod
    def run(cls, home: Path) -> Whole:
        """Make a model and rows, and train once without any harm."""
        tiny_model_dir(home / "model")
        rows = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}."} for k in range(16)]
        write_jsonl(home / "train.jsonl", rows)
        whole = cls(
            [
                f"model.partial_pretrain={home / 'model'}",
                f"data.train_files={home / 'train.jsonl'}",
                f"data.val_files={home / 'train.jsonl'}",
                "data.train_batch_size=4",
                "data.micro_batch_size_per_gpu=4",
                "model.fsdp_config.compute_dtype=fp32",
                "optim.lr=1e-3",
                "trainer.total_training_steps=4",
                "trainer.save_freq=2",
                "trainer.test_freq=2",
            ],
            {},
            {},
            0,
        )
        life = Stopped(whole.at(home / "place"), home / "place", 0, home / "whole.log")
        assert life.ends() == 0, life.text
        whole.calls = len(life.calls.read_text().splitlines())
        whole.curve, whole.model = curve(home / "place" / "run"), model_in(home / "place" / "run")
        assert len(whole.curve) == 4 and "model.safetensors" in whole.model
        return whole

    def at(self, place: Path) -> list[str]:
        """Return the command with everything it writes below `place`."""
        return [*self.command, f"trainer.default_local_dir={place / 'run'}", f"data.cache_dir={place / 'cache'}"]

    def moments(self, count: int, dice: random.Random) -> Iterator[int]:
        """Yield `count` calls, one from each of as many equal parts of the run."""
        for part in range(count):
            first, behind = self.calls * part // count + 1, self.calls * (part + 1) // count + 1
            yield dice.randrange(first, max(behind, first + 1))

    def is_sound(self, place: Path, *, has_power: bool = True) -> None:
        """Whatever is there by its final name is whole; of lines that nobody synced, a power cut may take some."""
        run_dir = place / "run"
        for checkpoint in RunDir(run_dir).checkpoints():
            assert problems_of(checkpoint) == []
        if (run_dir / "config.json").exists():
            assert model_in(run_dir) == self.model, "config.json comes last"
        for name in ("run.json", "result.json", "config.yaml"):
            if (path := run_dir / name).exists():
                assert (yaml.safe_load if name.endswith("yaml") else json.loads)(path.read_text())
        assert read_metrics(run_dir / "metrics.jsonl")[1] == 0 or not has_power, "lines are whole"
        for step, values in curve(run_dir).items():
            assert values == self.curve[step]

    def goes_on(self, place: Path) -> None:
        """The same command ends, and leaves what the unharmed run left."""
        run_dir = place / "run"
        succeed(self.at(place), ranks=0, cwd=place)
        self.is_sound(place)
        assert curve(run_dir) == self.curve and model_in(run_dir) == self.model
        assert [path.name for path in run_dir.iterdir() if path.name.startswith(".")] == [], "nothing unfinished"

    def is_finished(self, place: Path) -> None:
        """The same command once more finds nothing to do."""
        again = train(self.at(place), ranks=0, cwd=place)
        assert again.returncode == 0 and "nothing to do" in again.stderr, again.stderr


def model_in(directory: Path) -> dict[str, str]:
    """Return the sha256 of every file of a model that says what it computes."""
    files = [path for pattern in OF_THE_MODEL for path in directory.glob(pattern)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
