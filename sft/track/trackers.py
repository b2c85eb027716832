"""Send metrics to optional trackers: thin adapters, imported on demand, each in a thread of its own.

Every adapter takes the run when it is made, then `log(step, metrics)` per log point and `close()` at the end. A
resumed run is a new tracker run, `experiment@step-N`, grouped with its first part: continuing the old one would make
trackers drop the steps that are trained again.
"""

from __future__ import annotations

import json
import netrc
import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from sft.config.mappings import dotted
from sft.config.values import expand_home

CLOSING_PATIENCE_S = 30.0
MAX_QUEUED_STEPS = 100_000  # a tracker that hangs for so long is given up


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run."""

    dir: Path
    project: str
    experiment: str
    config: Mapping[str, Any]
    start_step: int

    @property
    def name(self) -> str:
        return f"{self.experiment}@step-{self.start_step}" if self.start_step else self.experiment

    def flat_config(self) -> dict[str, Any]:
        """Return the configuration with dotted keys: {"optim.lr": 1e-5, ...}."""
        return dotted(self.config)


class Tracker(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one step."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, run: TrackedRun, say: Callable[[str], None]):
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides the events of steps that are trained again.
        self._writer = SummaryWriter(str(run.dir / "tensorboard"), purge_step=run.start_step + 1)
        self._writer.add_text("config", f"```json\n{json.dumps(run.config, indent=2, default=str)}\n```")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    def __init__(self, run: TrackedRun, say: Callable[[str], None]):
        import wandb  # pyright: ignore[reportMissingImports]

        mode = _mode("wandb", _has_wandb_key(), f"wandb sync {run.dir}/wandb/offline-run-*", say)
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            group=run.experiment,
            config=dict(run.config),
            dir=str(run.dir),
            mode=mode,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _mode(tool: str, logged_in: bool, upload_command: str, say: Callable[[str], None]) -> str | None:
    """None, the tool's own choice, if the user made one or is logged in; else "offline", so that nobody is prompted."""
    if logged_in or os.environ.get(f"{tool.upper()}_MODE"):
        return None
    say(f"{tool}: no API key, so this run stays offline; to upload it later: {upload_command}")
    return "offline"


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    return _netrc_has(host, Path(expand_home(os.environ.get("NETRC", "~/.netrc"))))


def _netrc_has(host: str | None, path: Path) -> bool:
    """Whether a login for `host` (None: for anyone) is stored in the netrc file at `path`."""
    stored = netrc.netrc(str(path)).hosts if path.exists() else {}
    return bool(stored) if host is None else host in stored


class MLflow:
    def __init__(self, run: TrackedRun, say: Callable[[str], None]):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow = mlflow
        if not os.environ.get("MLFLOW_TRACKING_URI"):  # its default would leave a database in the working directory
            mlflow.set_tracking_uri(f"sqlite:///{(run.dir / 'mlflow.db').absolute()}")
        mlflow.set_experiment(run.project)
        mlflow.start_run(run_name=run.name)
        mlflow.log_params(run.flat_config())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


class SwanLab:
    def __init__(self, run: TrackedRun, say: Callable[[str], None]):
        import swanlab  # pyright: ignore[reportMissingImports]

        self._swanlab = swanlab
        logged_in = bool(os.environ.get("SWANLAB_API_KEY")) or _netrc_has(None, Path(expand_home("~/.swanlab/.netrc")))
        mode = _mode("swanlab", logged_in, f"swanlab sync {run.dir}/swanlog/run-*", say)
        logdir = str(run.dir / "swanlog")
        swanlab.init(project=run.project, experiment_name=run.name, config=dict(run.config), logdir=logdir, mode=mode)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._swanlab.log(dict(metrics), step=step)

    def close(self) -> None:
        self._swanlab.finish()


class Trackio:
    def __init__(self, run: TrackedRun, say: Callable[[str], None]):
        import trackio  # pyright: ignore[reportMissingImports]

        self._run = trackio.init(project=run.project, name=run.name, group=run.experiment, config=run.flat_config())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


ADAPTERS: dict[str, Callable[[TrackedRun, Callable[[str], None]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "swanlab": SwanLab,
    "trackio": Trackio,
}


class TrackerThread:
    """One tracker at work in the background: a server that is slow or gone may cost the tracker, never a step."""

    def __init__(self, name: str, run: TrackedRun, *, say: Callable[[str], None], warn: Callable[[str], None]):
        self._name = name
        self._say = say
        self._warn = warn
        self._steps: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(MAX_QUEUED_STEPS)
        self._thread = threading.Thread(target=self._work, args=(run,), name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._thread.is_alive():
            self._steps.put_nowait((step, metrics))

    def close(self) -> None:
        """Wait for the steps still queued, but not longer than CLOSING_PATIENCE_S."""
        self._steps.put_nowait(None)
        self._thread.join(CLOSING_PATIENCE_S)
        if self._thread.is_alive():
            self._warn(f"{self._name} did not finish within {CLOSING_PATIENCE_S:.0f} s; its last steps may be missing")

    def _work(self, run: TrackedRun) -> None:
        try:
            tracker = ADAPTERS[self._name](run, self._say)
            while (item := self._steps.get()) is not None:
                tracker.log(*item)
            tracker.close()
        except (Exception, SystemExit) as error:  # some trackers leave by sys.exit when they find no key
            self._warn(f"{self._name} is off for the rest of this run: {error!r}")
