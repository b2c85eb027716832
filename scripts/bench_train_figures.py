"""From the runs of bench_train.py to its figures: medians and ranges, ratios, a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_result import spread


@dataclass(frozen=True)
class Run:
    """What a contestant did. Rates are of the steps after the first `warm_up`; losses are one per step."""

    first_step_s: float  # from the start of its process to the end of its first optimizer step
    tokens_per_s: float
    supervised_tokens_per_s: float
    padding_frac: float
    peak_memory_gb: float
    losses: list[float]
    limit_fraction: float | None = None


def summary(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Median, smallest and largest of every figure of one contestant."""
    cold = runs["cold"]
    names = ["tokens_per_s", "supervised_tokens_per_s", "padding_frac", "peak_memory_gb", "limit_fraction"]
    figures = {name: [getattr(run, name) for run in cold] for name in names}
    figures["first_step_cold_s"] = [run.first_step_s for run in cold]
    figures["first_step_warm_s"] = [run.first_step_s for run in runs["warm"]]
    return {name: spread(values) for name, values in figures.items() if None not in values}


def ratios(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Ours to theirs, of medians, as far as they took part."""

    def of(who: str, what: str) -> float:
        return figures[who][what]["median"]

    told = {"limit_fraction": of("ours", "limit_fraction")} if "limit_fraction" in figures.get("ours", {}) else {}
    tuned = [who for who in ("trl_packed", "trl_padded") if who in figures]
    if "ours" in figures and "trl_default" in figures:
        told |= {
            "tokens_per_s_vs_trl_default": of("ours", "tokens_per_s") / of("trl_default", "tokens_per_s"),
            "first_step_vs_trl_cold": of("ours", "first_step_cold_s") / of("trl_default", "first_step_cold_s"),
            "first_step_vs_trl_warm": of("ours", "first_step_warm_s") / of("trl_default", "first_step_warm_s"),
        }
    if "ours" in figures and tuned:
        best = max(tuned, key=lambda who: of(who, "tokens_per_s"))
        told["tokens_per_s_vs_trl_tuned"] = of("ours", "tokens_per_s") / of(best, "tokens_per_s")
        told["peak_memory_vs_trl"] = of("ours", "peak_memory_gb") / of(best, "peak_memory_gb")
    return told


def draw(figures: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars of tokens per second and of the time to the first step, with their ranges."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "tokens/s (more is better)": "tokens_per_s",
        "start to first step, s (less is better)": "first_step_cold_s",
        "the same with tokens cached, s": "first_step_warm_s",
        "peak memory, GB": "peak_memory_gb",
    }
    drawing, axes = pyplot.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.4), constrained_layout=True)
    for axis, (title, what) in zip(axes, panels.items(), strict=True):
        for n, (who, numbers) in enumerate(figures.items()):
            number = numbers[what]
            reach = [[number["median"] - number["min"]], [number["max"] - number["median"]]]
            axis.bar(n, number["median"], yerr=reach, capsize=3, color="tab:blue" if who.startswith("ours") else "0.7")
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(figures)), [who.replace("_", "\n") for who in figures], fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=120)
    pyplot.close(drawing)


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Markdown, for docs/performance.md."""

    def cell(number: dict[str, float], form: str) -> str:
        return f"{number['median']:{form}} ({number['min']:{form}} to {number['max']:{form}})"

    lines = [
        "| | tokens/s | of them supervised | padding | first step | with tokens cached | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for who, n in figures.items():
        cells = [cell(n["tokens_per_s"], ",.0f"), f"{n['supervised_tokens_per_s']['median']:,.0f}"]
        cells += [f"{n['padding_frac']['median']:.1%}", cell(n["first_step_cold_s"], ".1f") + " s"]
        cells += [cell(n["first_step_warm_s"], ".1f") + " s", f"{n['peak_memory_gb']['median']:.2f} GB"]
        lines.append(f"| {who} | {' | '.join(cells)} |")
    return "\n".join(lines)
