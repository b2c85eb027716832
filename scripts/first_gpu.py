"""The first ten minutes on a new kind of GPU: what is right, what is fast, and what the estimates are worth there.

    python scripts/first_gpu.py [--out benchmarks/first_gpu_<device>_<date>.json] [--stages limits right ...]
                                [--wheels DIR | --fill DIR] [--rivals PYTHON] [--small]

One process until its last stages. Each stage has an alarm, and its numbers are on the disk as soon as they are taken: a
cut at any time loses one, and the same command goes on behind it. --wheels: where this machine has no network, a folder
with wheels of what is missing; --fill DIR fills it elsewhere. --rivals: a python that has TRL.
On a CPU, and with --small, the shapes are small: that only shows that it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NEEDED = {
    **{"hydra": "hydra-core", "omegaconf": "omegaconf", "pydantic": "pydantic", "rich": "rich", "pyarrow": "pyarrow"},
    **{"accelerate": "accelerate", "peft": "peft", "matplotlib": "matplotlib"},
    **{"pytest": "pytest", "pytest_timeout": "pytest-timeout"},
}
"""Modules that a python with torch and transformers may lack, and the packages that bring them."""
BELOW = (
    *("antlr4-python3-runtime", "annotated-types", "pydantic-core", "typing-inspection"),
    *("markdown-it-py", "mdurl", "pygments", "psutil", "iniconfig", "pluggy"),
    *("contourpy", "cycler", "fonttools", "kiwisolver", "pillow", "pyparsing", "python-dateutil", "tzdata"),
)
"""What those need in turn, and neither torch nor transformers brings."""


def bring_wheels(folder: Path) -> None:
    """Install from `folder` what this project needs and this python lacks; no network is asked."""
    if missing := [package for module, package in NEEDED.items() if find_spec(module) is None]:
        pip = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(folder), *missing]
        subprocess.run(pip, check=True)


def fill_with_wheels(folder: Path) -> None:
    """Put into `folder` what `bring_wheels` may need: on a machine with a network, by the same version of python."""
    constraints = HERE.parent / "constraints-oldest.txt"
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*pip, "--constraint", str(constraints), *NEEDED.values(), *BELOW], check=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stages", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--fill", type=Path)
    parser.add_argument("--rivals", type=Path)
    parser.add_argument("--small", action="store_true")
    return parser.parse_args()


NAMES = ("limits", "right", "train", "memory", "flex", "command", "tests", "trl")


@dataclass(frozen=True)
class Plan:
    """How large things are, and where subprocesses find their way."""

    small: bool
    rivals: Path | None = None

    def stages(self) -> list[Any]:
        from stages import Stage

        works: dict[str, tuple[float, Callable[[Any], None]]] = {
            "limits": (20, self.limits),
            "right": (70, self.right),
            "train": (120, self.train),
            "memory": (60, self.memory),
            "flex": (60, self.flex),
            "command": (90, self.command),
            "tests": (400, self.tests),
            "trl": (240, self.trl),
        }
        patience = 4 if self.small else 1  # small shapes run where others compute as well
        return [Stage(name, patience * seconds, work) for name, (seconds, work) in works.items()]

    def limits(self, note: Any) -> None:
        """Measure what matmuls and copies reach."""
        import bench_kernels

        for name, told in bench_kernels.limits(bench_kernels.TINY if self.small else bench_kernels.BIG).items():
            note(name, told)

    def right(self, note: Any) -> None:
        """Compare every kernel with the formula and the loss with whole logits; look for waits and sticky errors."""
        import first_gpu_right as right

        for width in (16, 24) if self.small else (64, 128, 256):
            for name, told in right.kernels_against_the_formula(width, tokens=60 if self.small else 1000):
                note(f"{name} of width {width}", told)
        for name, told in right.losses_against_whole_logits(rows=50 if self.small else 3000):
            note(name, told)
        with self._job("small" if self.small else "Qwen3-0.6B") as (job, batches):
            note("a micro-batch makes nobody wait", right.nothing_waits(job, batches[0]))
        note("a failed call leaves no error", right.no_sticky_error())

    def train(self, note: Any) -> None:
        """Time real steps: as they come, profiled, by chunk of logits and kernel of the loss, with Liger, compiled."""
        import first_gpu_speed as speed

        from sft.model import head
        from sft.model.logits import note_loss_kernel

        name = "small" if self.small else "Qwen3-0.6B"
        with self._job(name) as (job, batches):
            note("eager", speed.of_steps(job, batches))
            note("profile", speed.profiled(job, batches))
            default = dict(head.CHUNK)
            for rows in (16, 32) if self.small else (1024, 4096, 8192):
                head.CHUNK.update(cpu=rows, gpu=rows)
                note(f"{rows} rows of logits at a time", speed.of_steps(job, batches))
            head.CHUNK.update(default)
            for kernel in [] if self.small else ["torch_fp32", "triton", "triton_fp32"]:
                with speed.or_its_error(note, f"loss by {kernel}"):
                    note_loss_kernel(job.model, kernel)
                    note(f"loss by {kernel}", speed.of_steps(job, batches))
            note_loss_kernel(job.model, "auto")
        variants = {
            "checkpointed": ["model.enable_gradient_checkpointing=true"],
            "not resharded": ["model.fsdp_config.reshard_after_forward=false"],
            "liger": ["model.use_liger=true"],
            "compiled": ["model.compile=true"],
        }
        for variant, overrides in variants.items():
            if self.small and variant == "compiled":  # minutes on a CPU
                continue
            with speed.or_its_error(note, variant), self._job(name, *overrides) as (job, batches):
                note(variant, speed.of_steps(job, batches))

    def memory(self, note: Any) -> None:
        """Compare the most memory that real steps take with the estimate."""
        import first_gpu_speed as speed

        for name in ("small", "small, LoRA") if self.small else ("Qwen2.5-1.5B", "Qwen3-8B, LoRA"):
            with speed.or_its_error(note, name), self._job(name) as (job, batches):
                note(name, speed.of_steps(job, batches) | speed.peak_against(job.memory))

    def flex(self, note: Any) -> None:
        """Run gpt-oss-shaped layers on rows of twelve lengths, and count what was compiled for them."""
        import first_gpu_speed as speed

        with self._job("gpt-oss, small" if self.small else "gpt-oss layers") as (job, _):
            for number in range(12):
                note(f"row {number + 1}", speed.of_row(job, tokens=(16 if self.small else 1024) + 37 * number))
            note("variants compiled", speed.variants_compiled())

    def command(self, note: Any) -> None:
        """Train by the command line: 20 steps; the same in two starts, with a checkpoint between; equal losses."""
        import first_gpu_speed as speed

        for name, told in speed.of_the_command_line(small=self.small):
            note(name, told)

    def tests(self, note: Any) -> None:
        """Run tests/gpu, which need a CUDA device and skip without."""
        from stages import lines_of

        counts: Counter[str] = Counter()
        call = [
            sys.executable,
            "-u",
            "-m",
            "pytest",
            "-v",
            "-p",
            "no:cacheprovider",
            str(HERE.parent / "tests" / "gpu"),
        ]
        for line in lines_of(call, HERE.parent):
            if ended := re.match(r"(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)", line):
                counts[ended[2].lower()] += 1
                note("tests so far", {**counts, "right": not counts["failed"] + counts["error"]})
                if ended[2] in ("FAILED", "ERROR"):
                    note(ended[1], "failed")

    def trl(self, note: Any) -> None:
        """Train by the command line, and the same packed rows by TRL where a python that has it was named."""
        from stages import lines_of

        who = ["ours", *(["trl_packed"] if self.rivals else [])]
        with tempfile.TemporaryDirectory() as home:
            call = [sys.executable, "-u", str(HERE / "bench_train.py"), "--who", *who, "--out", f"{home}/figures.json"]
            call += ["--shape", "tiny" if self.small else "qwen3-0.6b", "--rounds", "1"]
            call += ["--rivals", str(self.rivals)] if self.rivals else []
            call += ["--steps", "1", "--rows", "100"] if self.small else []
            for line in lines_of(call, HERE.parent):
                if line.startswith("round"):
                    note(line.split()[2], line)
            for name, figures in json.loads(Path(home, "figures.json").read_text())["contestants"].items():
                note(name, figures)

    @contextmanager
    def _job(self, name: str, *overrides: str) -> Iterator[tuple[Any, list[Any]]]:
        """Build a job of random weights on the device, and the micro-batches of a step; both are gone afterwards."""
        import first_gpu_speed as speed
        import torch

        case = speed.CASES[name]
        with tempfile.TemporaryDirectory() as home, speed.on_the_device() as device:
            yield speed.job_of(case, Path(home), device, overrides)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def main() -> None:
    asked = arguments()
    if asked.fill:
        return fill_with_wheels(asked.fill)
    if asked.wheels:
        bring_wheels(asked.wheels)
    sys.path.insert(0, str(HERE.parent))  # the project need not be installed
    import torch
    from bench_result import facts_of_run
    from stages import Results, run_stages

    device = torch.cuda.get_device_name().lower().replace(" ", "-") if torch.cuda.is_available() else "cpu"
    path = asked.out or HERE.parent / "benchmarks" / f"first_gpu_{device}_{date.today().isoformat()}.json"
    plan = Plan(small=asked.small or device == "cpu", rivals=asked.rivals)
    results = Results(path, facts_of_run(device) | {"cuda": torch.version.cuda, "small": plan.small})
    left = run_stages([stage for stage in plan.stages() if stage.name in asked.stages], results)
    print(
        f"written to {path}; not done: {', '.join(left) or 'nothing'}; wrong: {', '.join(results.wrong) or 'nothing'}"
    )
    sys.exit(1 if left or results.wrong else 0)


if __name__ == "__main__":
    main()
