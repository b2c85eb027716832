"""Tokens per second, memory and time to the first step: ours against TRL's SFTTrainer, on the same rows and model.

    python scripts/bench_train.py [--shape tiny qwen3-width ...] [--rounds 3] [--steps 10] [--minutes 10] [--growth]
                                  [--who ours trl_default ...] [--rivals PYTHON] [--ours model.compile=true ...]

Model (random weights), tokenizer and rows are made from a seed. Contestants take turns, each run in a process of its
own, each round in another order:

    ours          our defaults; packed rows of up to the rivals' micro-batch of tokens; `python -m`, as the rivals
    ours_torchrun the same, started by torchrun, whose own process imports torch first
    trl_default   SFTTrainer, packing=True, else its defaults
    trl_packed    the same without gradient checkpointing, bf16 weights, fused AdamW, the fastest attention installed
    trl_padded    as trl_packed, with packing=False

Before anything is timed, all train two steps on the same sixteen conversations, and must report the same losses.
Tokens are real tokens, padding is none. "Tuned" is the faster of trl_packed and trl_padded. --growth then shows what
more samples, longer ones and more ranks cost us; what a checkpoint costs, bench_save.py shows. Writes
benchmarks/train_<device>_<date>.json, and a picture; `bench_train_figures.py` puts them into docs/performance.md.

Every run is written down in build/bench/ at once. The same command goes on behind a cut, or behind --minutes, after
which nothing more is begun and the result holds the rounds that are there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench_material import SEED, make_model, make_rows, make_tokenizer
from bench_result import PICTURES, facts_of_run, write_result
from bench_rivals import RIVAL_SETTINGS, fastest_attention, find_rivals, versions_of
from bench_shapes import SHAPES, Shape
from bench_train_figures import Run, draw, ratios, summary, table
from bench_train_growth import growth
from stages import OutOfTime, Results

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build" / "bench"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LR = 1e-4
GATE_ROWS, GATE_TOLERANCE = 16, 0.01
OURS = ("ours", "ours_torchrun")


@dataclass(frozen=True)
class Bench:
    model: Path
    scratch: Path
    shape: Shape
    rivals: Path | None  # python of their environment
    warm_up: int
    who: tuple[str, ...] = (*OURS, *RIVAL_SETTINGS)
    overrides: tuple[str, ...] = ()  # of ours

    def run(self, who: str, rows: Path, *, steps: int, samples: int, cache: Path) -> Run:
        if who in OURS:
            return self.ours(rows, steps=steps, samples=samples, cache=cache, torchrun=who == "ours_torchrun")
        # A packed row of theirs is max_length tokens; a padded one is a sample.
        packing = RIVAL_SETTINGS[who]["packing"]
        batch_size = GATE_ROWS if samples == GATE_ROWS else self.shape.micro_batch if packing else samples
        return self.trl(who, rows, steps=steps, batch_size=batch_size, cache=cache)

    def ours(
        self,
        rows: Path,
        *,
        steps: int,
        samples: int,
        cache: Path,
        ranks: int = 1,
        torchrun: bool = False,
        overrides: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> Run:
        shape = self.shape
        with tempfile.TemporaryDirectory(dir=self.scratch) as directory:
            run_dir = Path(directory) / "run"
            keys = {
                "data.train_files": rows,
                "data.val_files": "null",
                "data.cache_dir": cache,
                "data.max_length": shape.max_length,
                "data.train_batch_size": samples,
                "data.max_tokens_per_gpu": shape.max_length * shape.micro_batch,
                "model.partial_pretrain": self.model,
                "model.lora_rank": shape.lora_rank,
                "optim.lr": LR,
                "optim.betas": "[0.9,0.999]",
                "optim.weight_decay": 0,
                "optim.lr_scheduler": "constant",
                "optim.warmup_steps_ratio": 0,
                "trainer.default_local_dir": run_dir,
                "trainer.total_training_steps": steps,
                "trainer.logger": "[console,jsonl]",
                "use_remove_padding": "true",
            }
            command = [sys.executable]
            if torchrun or ranks > 1:
                command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
            command += ["-m", "sft.fsdp_sft_trainer", *(f"{key}={value}" for key, value in keys.items())]
            command += [*self.overrides, *overrides]
            started = time.time()
            with (Path(directory) / "output").open("w+") as output:
                process = subprocess.Popen(
                    command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ | (environment or {})
                )
                first_step = _first_line(run_dir / "metrics.jsonl", process)
                if process.wait() or first_step is None:
                    output.seek(0)
                    raise SystemExit(f"{' '.join(command)} failed:\n{output.read()}")
            records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        timed = records[self.warm_up :] or records
        seconds = sum(record["perf/step_time_s"] for record in timed)
        rate = sum(record["perf/tokens_per_sec_per_gpu"] * record["perf/step_time_s"] for record in timed) * ranks
        supervised = sum(
            record["perf/tokens_per_sec_per_gpu"] * record["perf/step_time_s"] * record["perf/supervised_frac"]
            for record in timed
        )
        return Run(
            first_step_s=first_step - started,
            tokens_per_s=rate / seconds,
            supervised_tokens_per_s=supervised * ranks / seconds,
            padding_frac=sum(record["perf/padding_frac"] for record in timed) / len(timed),
            peak_memory_gb=max(record["perf/max_memory_allocated_gb"] for record in records),
            losses=[record["train/loss"] for record in records],
            limit_fraction=sum(record["perf/mfu"] * record["perf/step_time_s"] for record in timed) / seconds
            if "perf/mfu" in timed[0]  # where the peak of the device is known
            else None,
        )

    def trl(self, who: str, rows: Path, *, steps: int, batch_size: int, cache: Path) -> Run:
        assert self.rivals is not None
        with tempfile.TemporaryDirectory(dir=self.scratch) as directory:
            job = RIVAL_SETTINGS[who] | {
                "model": str(self.model),
                "rows": str(rows),
                "output_dir": directory,
                "cache_dir": str(cache),
                "steps": steps,
                "batch_size": batch_size,
                "max_length": self.shape.max_length,
                "lora_rank": self.shape.lora_rank,
                "lr": LR,
                "attention": fastest_attention(self.rivals),
            }
            script = str(Path(__file__).with_name("bench_train_trl.py"))
            environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cache)}
            started = time.time()
            done = subprocess.run(
                [str(self.rivals), script, json.dumps(job)], env=environment, capture_output=True, text=True
            )
        if done.returncode:
            raise SystemExit(f"{who} failed:\n{done.stderr[-4000:]}")
        told = json.loads(done.stdout.splitlines()[-1])
        begin = self.warm_up if steps > self.warm_up else 0
        real, supervised, padding = (sum(counts) for counts in zip(*told["tokens"][begin:], strict=True))
        seconds = sum(told["seconds"][begin:])
        return Run(
            first_step_s=told["first_step_ended"] - started,
            tokens_per_s=real / seconds,
            supervised_tokens_per_s=supervised / seconds,
            padding_frac=padding / (real + padding),
            peak_memory_gb=told["peak_memory_gb"],
            losses=told["losses"],
        )


def _first_line(path: Path, process: subprocess.Popen[bytes]) -> float | None:
    """When the first whole line appears in a file; None if the process ends without it."""
    while True:
        ended = process.poll() is not None
        if path.exists() and path.read_bytes().count(b"\n"):
            return time.time()
        if ended:
            return None
        time.sleep(0.01)


class Kept:
    """The runs of one contest: of this process, and of those before it that were cut."""

    def __init__(self, settings: dict[str, Any], deadline: float):
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        KEPT.mkdir(parents=True, exist_ok=True)
        self.results = Results(KEPT / f"train_{settings['shape']}_{digest[:12]}.json", settings)
        self._deadline = deadline

    def runs(self, name: str, work: Callable[[], list[Run]]) -> list[Run]:
        """Return what `work` finds, or found in an earlier process. Raises OutOfTime where it would begin too late."""
        if not self.results.is_done(name):
            if time.monotonic() > self._deadline:
                raise OutOfTime
            self.results.put(name, state="done", runs=[asdict(run) for run in work()])
        return [Run(**told) for told in self.results.told["stages"][name]["runs"]]


def check_losses(bench: Bench, rows: Path, kept: Kept) -> dict[str, list[float]]:
    """Return the losses of two steps on the same samples, by contestant. Raises SystemExit unless they agree."""
    few = bench.scratch / "gate.jsonl"
    few.write_text("".join(rows.read_text().splitlines(keepends=True)[:GATE_ROWS]))

    def two_steps(who: str) -> list[Run]:
        return [bench.run(who, few, steps=2, samples=GATE_ROWS, cache=bench.scratch / f"gate_{who}")]

    losses = {who: kept.runs(f"gate {who}", lambda who=who: two_steps(who))[0].losses for who in bench.who}
    first = bench.who[0]
    for who, others in losses.items():
        if any(abs(b / a - 1) > GATE_TOLERANCE for a, b in zip(losses[first], others, strict=True)):
            raise SystemExit(f"{who} trains something else: losses {others}, those of {first} {losses[first]}")
    return losses


def contest(
    bench: Bench, rows: Path, kept: Kept, *, rounds: int, steps: int, samples: int
) -> Iterator[tuple[str, Run, Run]]:
    """Yield (contestant, cold run, warm run); the warm ones are one step long, on the token cache of the cold."""

    def cold_and_warm(who: str) -> list[Run]:
        with tempfile.TemporaryDirectory(dir=bench.scratch) as cache:
            return [bench.run(who, rows, steps=n, samples=samples, cache=Path(cache)) for n in (steps, 1)]

    names = bench.who
    for k in range(rounds):
        for who in names[k % len(names) :] + names[: k % len(names)]:
            cold, warm = kept.runs(f"round {k + 1} {who}", lambda who=who: cold_and_warm(who))
            told = f"first step {cold.first_step_s:5.1f} s, warm {warm.first_step_s:5.1f} s"
            print(f"round {k + 1}: {who:13} {cold.tokens_per_s:9,.0f} tokens/s, {told}", flush=True)
            yield who, cold, warm


def measure(name: str, arguments: argparse.Namespace, rivals: Path | None, deadline: float) -> bool:
    """Measure one shape and write the result. Returns whether it has all its rounds."""
    shape = SHAPES[name]
    # As many samples as fill the rivals' micro-batch of packed rows: make_rows says 339 tokens in the mean.
    samples = max(1, round(shape.max_length * shape.micro_batch / 339))
    settings = {
        "shape": name,
        "architecture": shape.architecture,
        "rows": arguments.rows,
        "samples_per_step": samples,
        "max_length": shape.max_length,
        "rows_per_micro_batch": shape.micro_batch,
        "steps": arguments.steps,
        "seed": SEED,
        "settings_of_ours": list(arguments.ours),
        "rivals": rivals and versions_of(rivals),
        "rival_attention": rivals and fastest_attention(rivals),
    }
    kept = Kept(settings | {"commit": facts_of_run(DEVICE)["commit"], "who": list(arguments.who)}, deadline)
    runs: dict[str, dict[str, list[Run]]] = {who: {"cold": [], "warm": []} for who in arguments.who}
    load_before, complete, gate, grown = os.getloadavg(), False, None, None
    with tempfile.TemporaryDirectory() as scratch:
        rows, model = Path(scratch) / "rows.jsonl", Path(scratch) / "model"
        make_rows(rows, arguments.rows)
        make_tokenizer(model, rows)
        make_model(model, shape.architecture, DEVICE)
        bench = Bench(model, Path(scratch), shape, rivals, 3, tuple(arguments.who), tuple(arguments.ours))
        try:
            gate = check_losses(bench, rows, kept)
            of_rounds = contest(bench, rows, kept, rounds=arguments.rounds, steps=arguments.steps, samples=samples)
            for who, cold, warm in of_rounds:
                runs[who]["cold"].append(cold)
                runs[who]["warm"].append(warm)
            complete = True
        except OutOfTime:
            print(f"{name}: {arguments.minutes:g} minutes are over; the same command goes on", flush=True)
        if arguments.growth and complete:
            grown = growth(bench, rows, samples, DEVICE)
    if not all(of_one["cold"] for of_one in runs.values()):
        return False
    figures = {who: summary(those) for who, those in runs.items()}
    rounds = {who: len(those["cold"]) for who, those in runs.items()}
    load = {"before": load_before, "after": os.getloadavg()}
    result = {"first_losses": gate, "contestants": figures, "ratios": ratios(figures), "growth": grown}
    device = DEVICE if DEVICE == "cpu" else torch.cuda.get_device_name().lower().replace(" ", "-")
    told = settings | {"rounds": rounds, "loadavg": load} | result
    path = write_result("train" if name == "tiny" else f"train_{name}", device, told, out=arguments.out)
    if arguments.out is None:
        draw(figures, PICTURES / f"{path.stem}.png")
    print(table(figures))
    print(json.dumps(result["ratios"], indent=2))
    print(f"written to {path}")
    if complete:
        kept.results.path.unlink()  # who asks again wants to measure again
    return complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["tiny" if DEVICE == "cpu" else "qwen3-0.6b"])
    parser.add_argument("--rows", type=int, default=2000, help="conversations to make (default 2000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="steps of a run, the first three not timed (default 10)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no run after so long (default: no limit)"
    )
    parser.add_argument("--growth", action="store_true", help="also more samples, longer ones, more ranks")
    everybody = (*OURS, *RIVAL_SETTINGS)
    parser.add_argument("--who", nargs="+", choices=everybody, default=everybody, help="contestants (default all)")
    parser.add_argument("--ours", nargs="+", default=(), metavar="KEY=VALUE", help="settings of ours")
    parser.add_argument("--rivals", type=Path, metavar="PYTHON", help="the Python of an environment that has TRL")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write figures of one shape there, and no picture")
    parser.add_argument("--venv", type=Path, default=KEPT / "rivals", help="where pip makes one otherwise")
    arguments = parser.parse_args()
    if arguments.out and len(arguments.shape) > 1:
        parser.error("--out takes the figures of one shape")
    deadline = time.monotonic() + 60 * arguments.minutes
    alone = not set(arguments.who) & set(RIVAL_SETTINGS)
    rivals = None if alone else find_rivals(arguments.rivals, arguments.venv)
    complete = [measure(name, arguments, rivals, deadline) for name in arguments.shape]
    raise SystemExit(0 if all(complete) else "not complete: the same command goes on")


if __name__ == "__main__":
    main()
