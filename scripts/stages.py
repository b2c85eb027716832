"""Run stages one after the other, each under an alarm, and write down at once what each finds.

The file is written anew, whole, after every number. So a cut at any time loses the number that was being taken, and a
second start with the same file goes on with the stages that are missing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRACE_S = 20
"""After the alarm, for a call that does not come back from the device; then the process ends."""

Note = Callable[[str, Any], None]


class OutOfTime(BaseException):
    """The alarm of a stage. Not an Exception, which a stage, or what it calls, may note or take for its own."""


@dataclass(frozen=True)
class Stage:
    """One part of a run. `work` is given a function that takes (name, what was found)."""

    name: str
    seconds: float
    work: Callable[[Note], None]


class Results:
    """A JSON file: facts, and for every stage its state, its seconds and what it found."""

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path = path
        before = json.loads(path.read_text()) if path.exists() else {}
        self.told: dict[str, Any] = {"facts": facts, "stages": before.get("stages", {})}

    def is_done(self, name: str) -> bool:
        return self.told["stages"].get(name, {}).get("state") == "done"

    @property
    def wrong(self) -> list[str]:
        """Return the names of what was compared and is not right."""
        found = [(name, told) for stage in self.told["stages"].values() for name, told in stage["found"].items()]
        return [name for name, told in found if isinstance(told, dict) and told.get("right") is False]

    def put(self, stage: str, **what: Any) -> None:
        """Add to what is known of a stage, on the disk when this returns."""
        self.told["stages"].setdefault(stage, {"found": {}}).update(what)
        beside = self.path.with_suffix(".part")
        with beside.open("w", encoding="utf-8") as file:
            file.write(json.dumps(self.told, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)


def run_stages(stages: Sequence[Stage], results: Results) -> list[str]:
    """Run the stages that are not done yet. A stage that fails or is out of time does not stop the others.

    Returns the names of those that are not done.
    """
    for stage in stages:
        if results.is_done(stage.name):
            print(f"{stage.name}: done before", flush=True)
            continue
        found: dict[str, Any] = {}
        results.put(stage.name, state="cut", found=found)  # until it is known better

        def note(name: str, what: Any, stage: Stage = stage, found: dict[str, Any] = found) -> None:
            found[name] = what
            results.put(stage.name, found=found)
            print(f"  {stage.name:8} {name}: {json.dumps(what)}", flush=True)

        began, state = time.perf_counter(), "done"
        try:
            with alarm(stage, results):
                stage.work(note)
        except OutOfTime:
            state = f"out of time after {stage.seconds:g} s"
        except Exception as error:  # the next stage may have better luck
            state = f"failed: {type(error).__name__}: {str(error).strip()[:500]}"
            results.put(stage.name, traceback=traceback.format_exc())
        results.put(stage.name, state=state, seconds=round(time.perf_counter() - began, 1))
        print(f"{stage.name}: {state}, {results.told['stages'][stage.name]['seconds']} s", flush=True)
    return [stage.name for stage in stages if not results.is_done(stage.name)]


def lines_of(call: Sequence[str], folder: Path) -> Iterator[str]:
    """Run a command and yield what it says, line by line; it ends with the stage. Raises RuntimeError if it fails."""
    last: deque[str] = deque(maxlen=12)
    process = subprocess.Popen(call, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            last.append(line.rstrip())
            yield line.rstrip()
        if process.wait():
            raise RuntimeError("\n".join(last))
    finally:
        process.kill()
        process.wait()


@contextmanager
def alarm(stage: Stage, results: Results) -> Iterator[None]:
    """Raise OutOfTime in the block after the stage's seconds; end the process where even that is not heard."""

    def ring(*_: Any) -> None:
        raise OutOfTime

    def give_up() -> None:
        results.put(stage.name, state=f"stuck in a call after {stage.seconds + GRACE_S:g} s; the process was ended")
        os._exit(3)

    watchdog = threading.Timer(stage.seconds + GRACE_S, give_up)
    watchdog.daemon = True
    before = signal.signal(signal.SIGALRM, ring)
    watchdog.start()
    signal.setitimer(signal.ITIMER_REAL, stage.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watchdog.cancel()
        signal.signal(signal.SIGALRM, before)
