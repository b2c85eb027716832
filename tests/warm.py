"""A process that has imported the trainer, and forks a command for each order: imports are most of a tiny run's time.

    the test's process                           this process           its fork
    order(...): one line of JSON         ----->  fork          ----->   become the command, with an exit code, output,
    process id; at its end the exit code <-----  wait                   directory and environment of its own

The fork runs the same file under the same name as `python -m` would. With ranks it is torchrun, with one difference:
the ranks are forks, too. tests/launch.py decides which commands are started so.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

MODULES = (
    *("sft.fsdp_sft_trainer", "sft.inspect", "sft.tokenise", "sft.evaluate", "sft.generate", "sft.export"),
    *("sft.checkpoint", "tests.dist.several", "tests.dist.stand_ins", "tests.dist.remembering"),
    *("tests.dist.unlike", "tests.dist.short_of_memory"),
    *("tests.fault.stops_itself", "tests.fault.nodes"),
)
"""The commands that can be started so."""

WRITE = os.O_WRONLY | os.O_APPEND  # standard output and standard error may be one file


class Warm:
    """The process that forks, started at the first order and ended with this one."""

    def __init__(self, environment: Mapping[str, str]):
        self.environment = dict(environment)
        self.is_busy = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm"],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.end)

    def end(self) -> None:
        """Let it go; it ends when nobody can give it orders any more."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def order(self, **what: Any) -> int:
        """Start a command and return its process id, which is its session's as well."""
        assert self._process.stdin is not None and not self.is_busy, "one command at a time"
        self.is_busy = True
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def has_ended(self) -> bool:
        """Return whether the command has ended."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def exit_code(self) -> int:
        """Wait for the command's end."""
        code = self._answer()
        self.is_busy = False
        return code

    def _answer(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the process that starts commands is gone: exit code {self._process.wait()}"
        return int(line)


def session_of(pid: int) -> list[int]:
    """Return the processes of a session that are still running."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == pid and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def serve() -> None:
    """Take orders until nobody gives any."""
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401
    from torch.distributed import run  # noqa: F401
    from transformers.models.qwen3 import modeling_qwen3  # noqa: F401

    import sft.evaluate.run
    import sft.fsdp_sft_trainer  # noqa: F401

    gc.freeze()  # else each fork, when it ends, looks through half a million objects, and copies the pages they lie in
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(**order)
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def become(
    *,
    module: str,
    arguments: Sequence[str],
    ranks: int,
    cwd: str,
    environment: dict[str, str],
    stdout: str,
    stderr: str,
    torchrun_flags: Sequence[str] = (),
) -> None:
    """Turn this fork into the command. ranks: 0 for one process without torchrun."""
    os.setsid()
    os.chdir(cwd)
    sys.path[0] = cwd  # as `python -m` puts it
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, stdout, WRITE), (2, stderr, WRITE)):
        opened = os.open(path, mode)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    if ranks == 0:
        run_as_main(module, list(arguments))
        return
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    SubprocessHandler._popen = lambda self, command, environment: ForkedRank(module, arguments, environment)
    torchrun.main(["--standalone", f"--nproc_per_node={ranks}", *torchrun_flags, "-m", module, *arguments])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # Python would take the interpreter down piece by piece, for a second


class ForkedRank:
    """Stand for the Popen of a rank: what torchrun asks of it is its id, its exit code and to wait for its end."""

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]):
        self._process = get_context("fork").Process(target=become_rank, args=(module, arguments, environment))
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode


def become_rank(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Turn this fork of torchrun into a rank, in a process group of its own, which torchrun signals."""
    os.setpgid(0, 0)
    Path("/proc/self/comm").write_text(f"rank {environment['RANK']}")  # by which ps shows it, and a test finds it
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # as after an exec; torchrun's own handlers are inherited otherwise
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    run_as_main(module, list(arguments))


def run_as_main(module: str, arguments: list[str]) -> None:
    """Run a module as `python -m module arguments...` does."""
    for name in [name for name in sys.modules if name == module or name == f"{module}.__main__"]:
        del sys.modules[name]  # it begins as if it had not been imported
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
