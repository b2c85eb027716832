"""Compare the runs of a sweep: what each reached, a table, and one picture of all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sft.files import replace_file
from sft.track.curve import draw_several

SHOULD_FALL = ("loss", "perplexity")


@dataclass(frozen=True)
class Outcome:
    """What one run of a sweep reached. value: of the metric that runs are compared by; None: it has none."""

    label: str
    run_dir: str
    ended: str  # finished, early stop, stopped, failed
    value: float | None
    step: int | None
    total_steps: int | None
    train_loss: float | None
    seconds: float | None

    @property
    def is_whole(self) -> bool:
        return self.ended in ("finished", "early stop")


def outcome_of(label: str, run_dir: Path, metric: str, exit_code: int) -> Outcome:
    """Read what a run has left in result.json. A run that failed has no value, whatever an earlier one has left."""
    try:
        result = json.loads((run_dir / "result.json").read_text())
    except (OSError, ValueError):
        result = {}
    if not result or exit_code:
        return Outcome(label, str(run_dir), "failed", None, result.get("steps"), result.get("total_steps"), None, None)
    best = result["best"] or {}
    of_the_best = best.get("metric") == metric and best.get("step") == result["published_step"]
    last = {"train/loss": result["train_loss"]["last"]} | result["val"]
    return Outcome(
        label,
        str(run_dir),
        ended=result["ended"],
        value=best["value"] if of_the_best else last.get(metric),
        step=result["steps"],
        total_steps=result["total_steps"],
        train_loss=result["train_loss"]["last"],
        seconds=result["duration_s"],
    )


def ranked(outcomes: Sequence[Outcome], metric: str) -> list[Outcome]:
    """Sort runs, best first; those without a value stand at the end."""
    falls = any(word in metric.split("/") for word in SHOULD_FALL)

    def place(outcome: Outcome) -> tuple[bool, float]:
        value = outcome.value
        return value is None, 0.0 if value is None else value if falls else -value

    return sorted(outcomes, key=place)


def table(outcomes: Sequence[Outcome], metric: str) -> str:
    """Return a Markdown table of the runs, best first."""
    head = f"| run | {metric} | train/loss | steps | ended |\n|---|---|---|---|---|\n"

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    return head + "\n".join(
        f"| {outcome.label} | {number(outcome.value)} | {number(outcome.train_loss)} | "
        f"{'-' if outcome.step is None else outcome.step} | {outcome.ended} |"
        for outcome in ranked(outcomes, metric)
    )


def write_outcomes(outcomes: Sequence[Outcome], metric: str, directory: Path) -> list[Path]:
    """Write sweep.md, sweep.json and, where any run has losses, sweep.png into `directory`; returns their paths."""
    best_first = ranked(outcomes, metric)
    content = {"metric": metric, "runs": [asdict(outcome) for outcome in best_first]}
    paths = [directory / "sweep.md", directory / "sweep.json"]
    replace_file(paths[0], f"{table(outcomes, metric)}\n".encode())
    replace_file(paths[1], f"{json.dumps(content, indent=2)}\n".encode())
    runs = {outcome.label: Path(outcome.run_dir) / "metrics.jsonl" for outcome in best_first}
    picture = directory / "sweep.png"
    drawn = draw_several(runs, picture, metric=metric, title=directory.name)
    return [*paths, picture] if drawn else paths
