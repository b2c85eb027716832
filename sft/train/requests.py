"""Hear on any rank what people and schedulers ask of a running job, and let all ranks agree on it.

They agree within the one sum that each step makes over the ranks: `wishes` goes in, `agreed` reads what comes out.

SIGTERM, SIGINT, SIGUSR1    finish the step, save, exit with 128 + the number of the signal
touch <run>/stop_now        the same, exit with 0
touch <run>/save_now        save now and go on; the file may say which kind (STATE, SAMPLER, BOTH; empty: BOTH)
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sft.checkpoint import KINDS, Kind
from sft.errors import MishapError
from sft.parallel.world import World, log, max_over_all_ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_WISH_S = 2.0
"""torchrun passes on what a terminal or a scheduler has also sent to the ranks: one wish, heard twice."""

STOP_NOW, SAVE_NOW = "stop_now", "save_now"


@dataclass(frozen=True)
class Requests:
    """What all ranks agreed to do after this step."""

    stop: bool = False
    signal: int = 0  # that asked to stop; 0: the file did
    save: Kind | None = None
    may_settle: bool = False  # no rank is still writing the checkpoint that was begun


class Listener:
    """Hears signals and files; see `listening`."""

    def __init__(self, run_dir: Path, world: World, is_writing: Callable[[], bool] = lambda: False):
        self._run_dir, self._world, self._is_writing = run_dir, world, is_writing
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._signal, self._heard_at, self._said = 0, 0.0, False
        self._agreed_signal = 0  # all ranks know of it
        self._stop_file = False

    def wishes(self) -> dict[str, float]:
        """Return what this rank was asked, by name; `agreed` understands the sums over all ranks. Takes files away."""
        orphaned = self._launcher is not None and os.getppid() != self._launcher
        if orphaned and not self._signal:
            self._signal = signal.SIGTERM
        save, gone = None, False
        if self._world.is_main:
            self._stop_file |= _take(self._run_dir / STOP_NOW) is not None
            save = self._kind_asked_for()
            gone = not self._run_dir.exists()
        return {
            **{signal.Signals(number).name: float(self._signal == number) for number in SIGNALS},
            **{f"save {kind}": float(save == kind) for kind in KINDS},
            STOP_NOW: float(self._stop_file),
            "is writing": float(self._is_writing()),
            "orphaned": float(orphaned),
            "directory is gone": float(gone),
        }

    def agreed(self, wishes: Mapping[str, float]) -> Requests:
        """Return what to do after this step. wishes: summed over all ranks, so that all get the same answer.

        Raises MishapError on all ranks if the run directory is gone.
        """
        if wishes["directory is gone"]:  # now, not when the next checkpoint is due: what is trained until then is lost
            raise MishapError(f"trainer.default_local_dir={self._run_dir} is gone: was it moved, deleted, unmounted?")
        heard = [number for number in SIGNALS if wishes[signal.Signals(number).name]]
        number = int(max(heard, default=self._agreed_signal))
        if number and not self._said:
            self._say("torchrun is gone" if wishes["orphaned"] else signal.Signals(number).name)
        return Requests(
            stop=bool(number or wishes[STOP_NOW]),
            signal=number,
            save=next((kind for kind in KINDS if wishes[f"save {kind}"]), None),
            may_settle=not wishes["is writing"],
        )

    def must_stop(self) -> bool:
        """Return True if the job must stop now, in the middle of a validation; saving can wait for its end.

        Every rank calls it, and all get the same answer, which the next `agreed` knows.
        """
        (number,) = max_over_all_ranks(self._signal)
        self._agreed_signal = int(number)
        return number > 0

    def hear(self, number: int) -> None:
        """Note a signal: the first one asks the run to stop after its step, a second one ends the process at once."""
        now = time.monotonic()
        if not self._signal:
            self._signal, self._heard_at = number, now
            self._say(signal.Signals(number).name)
        elif now - self._heard_at > SAME_WISH_S:
            os._exit(128 + number)

    def _say(self, why: str) -> None:
        self._said = True
        log.warning("%s: finishing the step, then saving and stopping; another signal ends the run at once", why)

    def _kind_asked_for(self) -> Kind | None:
        """Return what save_now asks for; None if it is not there."""
        text = _take(self._run_dir / SAVE_NOW)
        if text is None:
            return None
        wanted = text.strip().upper() or "BOTH"
        for kind in KINDS:
            if kind == wanted:
                return kind
        log.warning("%s says %r, expected %s or nothing; nothing is saved", SAVE_NOW, text[:40], ", ".join(KINDS))
        return None


@contextmanager
def listening(run_dir: Path, world: World, is_writing: Callable[[], bool] = lambda: False) -> Iterator[Listener]:
    """Hear signals from here on instead of dying of them; before and after, they end the process as usual.

    is_writing: whether this rank still writes the checkpoint that was begun

    A thread hears them: the main one may wait in a collective for a rank that hangs, and python would call a handler
    only after that.
    """
    listener = Listener(run_dir, world, is_writing)
    if threading.current_thread() is not threading.main_thread():  # python hears signals in the main thread only
        yield listener
        return
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    thread = threading.Thread(target=_listen, args=(ear, listener), name="signals", daemon=True)
    thread.start()
    # A handler of python's makes the interpreter's own write each signal's number into `mouth`, at once.
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    mouth_before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    try:
        yield listener
    finally:
        signal.set_wakeup_fd(mouth_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        mouth.close()
        thread.join(timeout=10)  # it holds what is_writing holds, the model among it: see process_group


def _listen(ear: socket.socket, listener: Listener) -> None:
    with ear:
        while heard := ear.recv(1):  # nothing: `mouth` is closed
            if heard[0] in SIGNALS:
                listener.hear(heard[0])


def request_save(run_dir: str | Path, kind: Kind = "BOTH") -> None:
    """Ask the job that trains in `run_dir` to save after its present step; returns at once."""
    assert kind in KINDS, f"{kind!r} is none of {KINDS}"
    aside = Path(run_dir) / f".{SAVE_NOW}.{os.getpid()}"
    aside.write_text(kind)
    aside.replace(Path(run_dir) / SAVE_NOW)


def _take(path: Path) -> str | None:
    """Remove a file and return its content; None if there is none."""
    try:
        if not path.is_file():  # a pipe would hold the run
            return None
        text = path.read_text(errors="replace")
        path.unlink()
    except OSError:
        return None
    return text
