"""How long training stands still for a checkpoint: written at once, and written in the background.

    python scripts/bench_save.py [--gigabytes 1.2] [--rounds 5]

Both ways in turn, in one run. The stall in the background is the copy to CPU memory plus the commit of the finished
files; that of a checkpoint written at once is all of it. The first copy goes into new memory, which is slower, and is
told apart. Beside it the steps that train while something is written or deleted are timed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from bench_result import spread, write_result

from sft.checkpoint import Saver
from sft.parallel.world import World, process_group
from sft.types import TrainState

BYTES_PER_WEIGHT = 12  # fp32 master and two moments
WIDTH = 2048


class Job:
    """A stack of matrices in training."""

    def __init__(self, gigabytes: float, world: World, run_dir: Path):
        layers = max(1, round(gigabytes * 1e9 / BYTES_PER_WEIGHT / WIDTH**2))
        self.model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
        self.model.to(world.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.rows = torch.randn(64, WIDTH, device=world.device)
        about = {"job_id": "bench", "base_model": "bench", "fingerprint": {}}
        self.savers = {
            way: Saver(run_dir, world=world, about=about, keep=1, in_background=way == "in_background")
            for way in ("at_once", "in_background")
        }
        self.state = TrainState()
        self.gigabytes = layers * WIDTH**2 * BYTES_PER_WEIGHT / 1e9

    def step(self) -> float:
        """One optimizer step; returns its seconds."""
        started = time.perf_counter()
        self.model(self.rows).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.rows.is_cuda:
            torch.cuda.synchronize()
        self.state.step += 1
        self.state.updates += 1
        return time.perf_counter() - started

    def stall(self, way: str) -> tuple[float, list[float]]:
        """Save once; returns the seconds in which no step could run, and those of the steps that ran meanwhile."""
        saver = self.savers[way]
        started = time.perf_counter()
        saver.save("STATE", self.state, self.model, self.optimizer, write_model=no_model)
        stalled = time.perf_counter() - started
        meanwhile = []
        while saver.is_writing:
            meanwhile.append(self.step())
        started = time.perf_counter()
        saver.settle()
        stalled += time.perf_counter() - started
        return stalled, [*meanwhile, self.step()]  # in the last one, what was replaced is deleted


def no_model(_: Path) -> None:
    raise AssertionError("STATE holds no model")


def measure(job: Job, *, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {"at_once": [], "in_background": [], "step_alone": [], "step_meanwhile": []}
    for _ in range(rounds):
        for way in ("at_once", "in_background"):
            seconds["step_alone"] += [job.step() for _ in range(3)]
            stalled, meanwhile = job.stall(way)
            seconds[way].append(stalled)
            seconds["step_meanwhile"] += meanwhile
    return seconds


def table(seconds: dict[str, dict[str, float]], first: float, ratios: dict[str, float]) -> str:
    """Markdown, for docs/performance.md."""

    def cell(way: str) -> str:
        return f"{seconds[way]['median']:.2f} s ({seconds[way]['min']:.2f} to {seconds[way]['max']:.2f})"

    ratio = f"{ratios['stall_vs_synchronous']:.2f} times as long"
    return "\n".join(
        [
            "| | training stands still | the first time |",
            "|---|---|---|",
            f"| `trainer.async_save=false` | {cell('at_once')} | |",
            f"| `trainer.async_save=true` (default) | {cell('in_background')}, {ratio} | {first:.2f} s |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.2, help="size of the checkpoint (default 1.2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to write; default: the temporary directory")
    arguments = parser.parse_args()
    world = World(0, 1, 0)
    run_dir = Path(tempfile.mkdtemp(dir=arguments.dir))
    try:
        with process_group(world):
            job = Job(arguments.gigabytes, world, run_dir)
            (first,) = measure(job, rounds=1)["in_background"]
            seconds = {name: spread(values) for name, values in measure(job, rounds=arguments.rounds).items()}
    finally:
        shutil.rmtree(run_dir)
    ratios = {
        "stall_vs_synchronous": seconds["in_background"]["median"] / seconds["at_once"]["median"],
        "step_meanwhile_vs_alone": seconds["step_meanwhile"]["median"] / seconds["step_alone"]["median"],
    }
    result = {"gigabytes": job.gigabytes, "seconds": seconds, "first_in_background": first, "ratios": ratios}
    path = write_result("save", world.device.type, result)
    for name, values in seconds.items():
        print(f"{name:16} {values['median']:7.3f} s  ({values['min']:.3f} to {values['max']:.3f})")
    for name, ratio in ratios.items():
        print(f"{name:24} {ratio:.2f}")
    print(f"written to {path}\n\n{table(seconds, first, ratios)}")


if __name__ == "__main__":
    main()
