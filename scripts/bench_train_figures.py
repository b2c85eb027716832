"""From the runs of bench_train.py to its figures: medians and ranges, ratios, a table and a picture.

    python scripts/bench_train_figures.py benchmarks/train_cpu_2026-11-21.json ...

puts the tables, ratios and pictures of results into docs/performance.md, in the place of older ones of the same shape.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_result import PICTURES, ROOT, spread

PAGE = ROOT / "docs" / "performance.md"
NAMES = {
    "ours": "ours, defaults, `use_remove_padding=true`",
    "ours_torchrun": "the same, started by torchrun",
    "trl_default": "TRL, `packing=True`, else its defaults",
    "trl_packed": "the same, no checkpointing, bf16 weights, fused AdamW",
    "trl_padded": "as before, `packing=False`",
}


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
    if "ours_torchrun" in figures and "trl_default" in figures:
        for start in ("cold", "warm"):
            what = f"first_step_{start}_s"
            told[f"first_step_torchrun_vs_trl_{start}"] = of("ours_torchrun", what) / of("trl_default", what)
    if "ours" in figures and tuned:
        best = max(tuned, key=lambda who: of(who, "tokens_per_s"))
        told["first_step_vs_trl_tuned_cold"] = of("ours", "first_step_cold_s") / of(best, "first_step_cold_s")
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
        "| | tokens/s | padding | start to first step | with tokens cached | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for who, n in figures.items():
        cells = [cell(n["tokens_per_s"], ",.0f"), f"{n['padding_frac']['median']:.0%}"]
        cells += [cell(n[f"first_step_{start}_s"], ".1f") + " s" for start in ("cold", "warm")]
        lines.append(f"| {NAMES[who]} | {' | '.join(cells)} | {n['peak_memory_gb']['median']:.2f} GB |")
    return "\n".join(lines)


def block(result: dict[str, Any], path: Path) -> str:
    """Return what docs/performance.md says of a result: the table, what follows from it, the picture."""
    figures, of = result["contestants"], ratios(result["contestants"])
    versions = (result["rivals"] or {}) | result["versions"]
    said = [f"`{path.name}`, TRL {versions.get('trl', '-')}, torch {versions['torch']}."]
    if "tokens_per_s_vs_trl_default" in of:
        said.append(f"{of['tokens_per_s_vs_trl_default']:.1f} times the tokens per second of TRL's defaults.")
    if "tokens_per_s_vs_trl_tuned" in of:
        said.append(
            f"{of['tokens_per_s_vs_trl_tuned']:.1f} times those of its faster tuned setting, in "
            f"{of['peak_memory_vs_trl']:.2f} of that one's memory."
        )
    if "limit_fraction" in of:
        said.append(f"The step does useful arithmetic at {of['limit_fraction']:.0%} of the rate of a bare matmul.")
    for by, start in (("python", ""), ("torchrun", "torchrun_")):
        if (cold := f"first_step_{start}vs_trl_cold") in of:
            warm = of[cold.replace("cold", "warm")]
            said.append(f"Started by {by}, the first step ends after {of[cold]:.2f} of the time of TRL's defaults")
            said[-1] += f", {warm:.2f} with tokens cached."
    picture = f"![the same as bars](pictures/{path.stem}.png)"
    return f"{table(figures)}\n\n" + "\n".join(said) + f"\n\n{picture}"


def put(page: str, shape: str, text: str) -> str:
    """Return the page with `text` in the place of what it says of a shape."""
    begin, end = f"<!-- contest {shape}: scripts/bench_train_figures.py -->", f"<!-- end of contest {shape} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{PAGE.name} has no place for {shape}: the lines {begin} and {end}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="files of bench_train.py")
    page = PAGE.read_text()
    for path in parser.parse_args().results:
        result = json.loads(path.read_text())
        picture = PICTURES / f"{path.stem}.png"
        if not picture.exists():
            draw(result["contestants"], picture)
        page = put(page, result["shape"], block(result, path))
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
