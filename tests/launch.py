"""Start the real command in real processes, with a hard time limit, and leave none behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tests.warm import MODULES, Warm, session_of

REPOSITORY = Path(__file__).parent.parent
MARK = "SFT_TEST_RUN"
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # as sft.parallel.device, which imports torch


def train(
    overrides: Sequence[str],
    *,
    ranks: int = 1,
    cwd: Path,
    timeout_s: float = 300,
    env: Mapping[str, str] | None = None,
    module: str = "sft.fsdp_sft_trainer",
    torchrun: Sequence[str] = (),
    may_fork: bool = True,
) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc_per_node=ranks -m sft.fsdp_sft_trainer overrides...`, its output captured.

    ranks: 0 is the command without torchrun
    torchrun: more flags for it
    may_fork: False starts the command and its ranks from nothing, as a user does

    Fails the test if it outlives timeout_s, or if any of its processes outlives it. What needs no environment of
    its own is forked by a process that has the imports behind it (tests/warm.py); its torchrun forks the ranks.
    """
    environment = clean_environment()
    is_plain = not env and not torchrun and may_fork and module in MODULES
    if is_plain and (warm := ready_process(environment)):
        return _forked(warm, list(overrides), ranks, cwd, timeout_s, environment, module)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *torchrun]
    if ranks == 0:  # without torchrun
        launcher = [sys.executable]
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [*launcher, "-m", module, *overrides],
        cwd=cwd,
        env=environment | {MARK: mark} | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_marked(mark)
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout_s} s\n{out}\n{err}") from None
    finally:
        survivors = kill_marked(mark)
    assert not survivors, f"processes left behind: {survivors}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@cache
def warm_process() -> Warm:
    """Return the process that forks commands; started when it is first asked for."""
    return Warm(clean_environment())


def ready_process(environment: Mapping[str, str]) -> Warm | None:
    """Return the process that forks, unless it waits for a command, or this test's environment is not its own."""
    warm = warm_process()
    ours = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    its = {name: value for name, value in warm.environment.items() if not name.startswith("PYTEST_")}
    return warm if ours == its and not warm.is_busy else None


def _forked(
    warm: Warm,
    overrides: list[str],
    ranks: int,
    cwd: Path,
    timeout_s: float,
    environment: Mapping[str, str],
    module: str,
) -> subprocess.CompletedProcess[str]:
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        pid = warm.order(
            module=module,
            arguments=overrides,
            ranks=ranks,
            cwd=str(cwd),
            environment=dict(environment),
            stdout=out.name,
            stderr=err.name,
        )
        alarm = threading.Timer(timeout_s, lambda: [os.kill(one, signal.SIGKILL) for one in session_of(pid)])
        alarm.start()
        code = warm.exit_code()
        in_time = alarm.is_alive()
        alarm.cancel()
        told = out.read(), err.read()
    assert in_time, f"still running after {timeout_s} s\n{told[0]}\n{told[1]}"
    survivors = kill_session(pid, grace_s=5)
    assert not survivors, f"processes left behind: {survivors}"
    return subprocess.CompletedProcess([module, *overrides], code, *told)


def kill_session(pid: int, grace_s: float) -> list[str]:
    """Kill what is left of a session after `grace_s`, and return the command lines of it.

    A helper of a run dies by its parent's death (`PR_SET_PDEATHSIG`), so it may still be on its way out: it has given
    its memory back, has no command line any more, and counts as running.
    """
    until = time.monotonic() + grace_s
    while session_of(pid) and time.monotonic() < until:
        time.sleep(0.02)
    survivors = []
    for one in session_of(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            survivors.append(Path(f"/proc/{one}/cmdline").read_text().replace("\0", " "))
            os.kill(one, signal.SIGKILL)
    return survivors


def succeed(overrides: Sequence[str], **options) -> subprocess.CompletedProcess[str]:
    """`train`, and the test fails with the output unless it exits with 0."""
    done = train(overrides, **options)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def train_all(
    home: Path, runs: Sequence[Sequence[str]], ranks: int, module: str = "tests.dist.several"
) -> list[list[dict]]:
    """Do several runs in the same ranks, in home/run_0, home/run_1, ...; what each wrote into metrics.jsonl."""
    home.mkdir()
    directories = [home / f"run_{number}" for number in range(len(runs))]
    placed = [
        [*overrides, f"trainer.default_local_dir={directory}"]
        for overrides, directory in zip(runs, directories, strict=True)
    ]
    (home / "runs.json").write_text(json.dumps(placed))
    succeed([str(home / "runs.json")], ranks=ranks, cwd=home, module=module)
    return [read_metrics(directory) for directory in directories]


def read_metrics(run_dir: Path) -> list[dict]:
    """What a run wrote into metrics.jsonl, line by line."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def clean_environment() -> dict[str, str]:
    """A user's shell: this Python, no outer torchrun, one thread per rank, no GPU, the checkout importable.

    Without what a run in this process leaves in it: every run after it would be started from nothing.
    """
    torchrun_sets = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    runs_set = (*KERNEL_CACHES, "TOKENIZERS_PARALLELISM", "MLFLOW_DISABLE_TELEMETRY")
    kept = {name: value for name, value in os.environ.items() if name not in (*torchrun_sets, *runs_set)}
    paths = [str(REPOSITORY), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")]),  # as if activated
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",  # these numbers are the CPU's, on any machine; tests/gpu gives the device back
    }


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def kill_marked(mark: str) -> list[str]:
    """SIGKILL every process that carries `mark` in its environment; returns their command lines."""
    killed = []
    needle = f"{MARK}={mark}".encode()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (directory / "environ").read_bytes().split(b"\0"):
                killed.append((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                os.kill(int(directory.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return [command for command in killed if command]
