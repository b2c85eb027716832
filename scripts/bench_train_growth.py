"""How the cost of ours grows: with the number of samples, their length, ranks, and ranks that share a row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from bench_material import make_rows
from bench_train_figures import Run

if TYPE_CHECKING:
    from bench_train import Bench


def growth(bench: Bench, rows: Path, samples: int, device: str) -> dict[str, list[dict[str, Any]]]:
    """Measure what it costs us to have more of something, one run each."""
    shape, scratch = bench.shape, bench.scratch

    def entry(name: str, value: int, cold: Run, **more: Any) -> dict[str, Any]:
        seen = {"first_step_s": cold.first_step_s, "tokens_per_s": cold.tokens_per_s}
        print(f"{name} {value}: {json.dumps(seen | more)}", flush=True)
        return {name: value} | seen | {"peak_memory_gb": cold.peak_memory_gb} | more

    by_rows, by_length, by_ranks, by_sp = [], [], [], []
    for count in (1_000, 10_000, 100_000):
        make_rows(many := scratch / "many.jsonl", count, turns_of_every_fifth=1)
        cache = scratch / f"many_{count}"
        cold, warm = (bench.ours(many, steps=1, samples=samples, cache=cache) for _ in range(2))
        by_rows.append(entry("samples", count, cold, warm_first_step_s=warm.first_step_s))
    steps = bench.warm_up + 4
    for length in (512, 1024, 2048, 4096, 8192):
        make_rows(long := scratch / "long.jsonl", 64, turns_of_every_fifth=1, pairs=max(1, round(length / 240)))
        run = bench.ours(
            long,
            steps=steps,
            samples=max(1, 8192 // length),
            cache=scratch / "long",
            overrides=[f"data.max_length={length}", "data.truncation=right", "data.max_tokens_per_gpu=8192"],
        )
        by_length.append(entry("max_length", length, run))
    one_thread = {"OMP_NUM_THREADS": "1"} if device == "cpu" else {}
    devices = torch.cuda.device_count() if device == "cuda" else len(os.sched_getaffinity(0))
    tokens = shape.max_length * shape.micro_batch
    for ranks in (1, 2) if devices > 1 else ():
        run = bench.ours(
            rows,
            steps=steps,
            samples=2 * samples,
            cache=scratch / "ranks",
            ranks=ranks,
            environment=one_thread,
        )
        by_ranks.append(entry("ranks", ranks, run))
    for sp in (1, 2) if devices > 1 else ():
        run = bench.ours(
            rows,
            steps=steps,
            samples=2 * samples,
            cache=scratch / "ranks",
            ranks=2,
            environment=one_thread,
            overrides=[f"ulysses_sequence_parallel_size={sp}", f"data.max_tokens_per_gpu={tokens}"],
        )
        by_sp.append(entry("sp", sp, run))
    return {"samples": by_rows, "max_length": by_length, "ranks": by_ranks, "sp": by_sp}
