"""A training run seen from outside: started by torchrun, watched through its files, hurt by signals.

A *life* is one start of the command. Several lives in one run directory, each ended by a fault, are to give the curve
of one uninterrupted run.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sft.checkpoint.find import problems_of
from sft.track.files import read_metrics
from tests.launch import MARK, REPOSITORY, clean_environment, kill_marked, kill_session, ready_process
from tests.warm import Warm, session_of

FAULTS = int(os.environ.get("FAULTS", "3"))
"""How many faults of every class; `make faults` sets 30."""

SAVE_FREQ = 10
STEPS = 400
ROOM = 150
"""Steps a life may take before its fault ends it."""

PATIENCE_S = 120.0
"""For whatever a healthy run does next, on a machine that does much else besides."""

HANDLED = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", HANDLED)
TRAIN_SH = ("bash", str(REPOSITORY / "scripts" / "train.sh"))


class Forked:
    """Stand for the Popen of a torchrun that is forked, and whose ranks are forks, too: see tests/warm.py."""

    def __init__(self, warm: Warm, overrides: Sequence[str], cwd: Path, log: Path):
        self._warm = warm
        self._code: int | None = None
        self.pid = self._warm.order(
            module="sft.fsdp_sft_trainer",
            arguments=list(overrides),
            ranks=2,
            cwd=str(cwd),
            environment=clean_environment(),
            stdout=str(log),
            stderr=str(log),
            torchrun_flags=[HANDLED],
        )

    def poll(self) -> int | None:
        if self._code is None and self._warm.has_ended():
            self._code = self._warm.exit_code()
        return self._code

    def wait(self, timeout: float = PATIENCE_S) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("torchrun", timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def ranks(self) -> dict[int, int]:
        """Return the process ids of the ranks."""
        found = {}
        for pid in session_of(self.pid):
            with suppress(FileNotFoundError, ProcessLookupError):
                name = Path(f"/proc/{pid}/comm").read_text()
                if name.startswith("rank ") and os.getpgid(pid) == pid:  # its children bear its name
                    found[int(name.removeprefix("rank "))] = pid
        return found


class Life:
    """One start of the command in `run_dir`.

    may_fork: torchrun and its ranks are forks of a process that has the imports behind it, where that can be; else they
    start from nothing, as a user's do
    """

    def __init__(
        self,
        overrides: Sequence[str],
        run_dir: Path,
        *,
        launcher: Sequence[str] = TORCHRUN,
        env: Mapping[str, str] | None = None,
        may_fork: bool = True,
    ):
        self.run_dir = run_dir
        self._mark = uuid.uuid4().hex
        self._log = run_dir.parent / f"{run_dir.name}.{self._mark[:8]}.log"
        module = () if launcher == TRAIN_SH else ("-m", "sft.fsdp_sft_trainer")
        overrides = [*overrides, f"trainer.default_local_dir={run_dir}"]
        self.process: Forked | subprocess.Popen
        can_fork = may_fork and launcher == TORCHRUN and not env
        if can_fork and (warm := ready_process(clean_environment())):
            self._log.touch()
            self.process = Forked(warm, overrides, run_dir.parent, self._log)
            return
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*launcher, *module, *overrides],
                cwd=run_dir.parent,
                env=clean_environment() | {MARK: self._mark} | dict(env or {}),
                stdout=log,
                stderr=log,
                start_new_session=True,  # a signal to pytest is none to the run
            )

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def starts(self) -> list[int]:
        """The steps it began after, one for every time that training began; under --max-restarts there are several."""
        begun = re.findall(r"^(?:continuing from \S*global_step_(\d+)|(step = .* dp ).*)$", self.text, re.MULTILINE)
        steps, resumed = [], 0
        for step, training in begun:
            if training:
                steps.append(resumed)
                resumed = 0
            else:
                resumed = int(step)
        return steps

    @property
    def step(self) -> int:
        return last_step(self.run_dir)

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks."""
        if isinstance(self.process, Forked):
            return self.process.ranks()
        found = {}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                environment = (directory / "environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if f"{MARK}={self._mark}".encode() in environment:
                ranks = [int(entry.removeprefix(b"RANK=")) for entry in environment if entry.startswith(b"RANK=")]
                found.update(dict.fromkeys(ranks, int(directory.name)))
        return found

    def until(self, happens: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
        """Wait for it; fails if the run ends first, or time."""
        deadline = time.monotonic() + within_s
        while not happens():
            assert self.process.poll() is None, f"the run ended before {what}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {what} within {within_s:.0f} s:\n{self.text}"
            time.sleep(0.001)

    def trains(self, steps: int = 1, *, start: int = 1) -> None:
        """Wait until it has trained `steps` steps since training began for the `start`-th time."""
        self.until(lambda: len(self.starts) >= start, "the first step")
        self.until(lambda: self.step >= self.starts[start - 1] + steps, f"step {steps} of this life")

    def hurt(self, number: signal.Signals, ranks: Sequence[int] = (0, 1)) -> None:
        """Send a signal to ranks; SIGKILL to all of them takes torchrun along, as when a machine goes."""
        pids = self.ranks()
        for rank in ranks:
            os.kill(pids[rank], number)
        if number == signal.SIGKILL and len(ranks) == 2:
            self.process.kill()

    def ends(self, within_s: float = PATIENCE_S) -> int:
        """The exit code of the launcher. Fails if it takes longer, or leaves processes behind."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._kill()
            raise AssertionError(f"still running after {within_s:.0f} s:\n{self.text}") from None
        deadline = time.monotonic() + 10
        while self.ranks() and time.monotonic() < deadline:  # torchrun was killed; they are to follow by themselves
            time.sleep(0.05)
        left = self._kill(grace_s=5)
        assert not left, f"processes left behind: {left}\n{self.text}"
        return code

    def clear(self) -> None:
        """Leave nothing of a test that failed."""
        self._kill()
        self.process.wait()

    def _kill(self, grace_s: float = 0) -> list[str]:
        if isinstance(self.process, Forked):
            return kill_session(self.process.pid, grace_s)
        return kill_marked(self._mark)


class Run:
    """A run that is started again and again; what it gives is compared with the uninterrupted one."""

    def __init__(self, command: list[str], home: Path, reference: dict[int, tuple[float, ...]]):
        self._command, self._home, self._reference = command, home, reference
        self.run_dir = home / "run_0"
        self.lives: list[Life] = []

    def start(self, *overrides: str, **options) -> Life:
        """The same command again."""
        life = Life([*self._command, *overrides], self.run_dir, **options)
        self.lives.append(life)
        return life

    def with_room(self, life: Life, *overrides: str) -> Life:
        """This life, or where its run is nearly over, the first one of a run in another directory."""
        if life.step <= STEPS - ROOM:
            return life
        life.clear()
        self.run_dir = self._home / f"run_{len(self.lives)}"
        life = self.start(*overrides)
        life.trains(1)
        return life

    def is_sound(self) -> None:
        """Every step so far is the uninterrupted run's, the newest checkpoint is whole."""
        for step, values in curve(self.run_dir).items():
            assert values == self._reference[step], f"step {step} of {self.run_dir}"
        if steps := saved_steps(self.run_dir):
            assert problems_of(self.run_dir / f"global_step_{steps[-1]}") == []

    def goes_on(self, *overrides: str, at_least: int = SAVE_FREQ + 5) -> Life:
        """A life that resumes, trains a while in which it saves, and is sound; it is still running."""
        life = self.start(*overrides)
        life.trains(at_least)
        self.is_sound()
        return life


def last_step(run_dir: Path) -> int:
    records, _ = read_metrics(run_dir / "metrics.jsonl")
    return records[-1]["step"] if records else 0


def curve(run_dir: Path) -> dict[int, tuple[float, ...]]:
    """What training gave at each step, to the last bit."""
    records, _ = read_metrics(run_dir / "metrics.jsonl")
    keys = ("train/loss", "train/grad_norm", "train/lr", "train/num_input_tokens_seen")
    return {record["step"]: tuple(record[key] for key in keys) for record in records}


def saved_steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name.rpartition("_")[2]) for path in run_dir.glob("global_step_*"))
