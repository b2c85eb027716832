"""Train a tiny model of every family that transformers has, in every mode, and compare with a plain loop.

    python scripts/sweep_families.py                 # all of them, and docs/models.md is written anew
    python scripts/sweep_families.py qwen3 mixtral   # these, and their rows of docs/models.md
    python scripts/sweep_families.py --modes sp      # one column of it

A mode is right if the losses and gradient norms of all steps are those of a plain loop (sweep_plain.py), the model
opens afterwards with nothing missing and nothing new, has the names, shapes and dtypes of its source, predicts what
the plain loop's does, and generates. With LoRA, the merged model must also predict what base and adapter do in peft.
Exit status 1: something is wrong, crashed, or is no longer right that was so in docs/models.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from sweep_models import ROWS, families, write_model
from sweep_plain import BETAS, CLIP, LR, STEPS, Course, loss_of, open_model, samples_of, train_plainly
from sweep_table import Row, joined, read_table, write_table
from sweep_vision import FAMILIES as VISION
from sweep_vision import write_vision_model

from sft import load_config, run
from sft.errors import InputError

SECONDS = 120
"""A family that takes longer in one mode hangs."""

MODES: dict[str, list[str]] = {
    "full": [],
    "packed": ["use_remove_padding=true"],
    "sp": ["use_remove_padding=true", "ulysses_sequence_parallel_size=2"],
    "LoRA": ["model.lora_rank=4", "model.lora_alpha=8"],
}

DRAWS_AT_RANDOM = {"phimoe": "its router draws experts at random while it trains: only losses without training count"}


@dataclass(frozen=True)
class Outcome:
    """What came of a mode: right, refused, wrong or crashed, and why."""

    verdict: str
    why: str = ""
    course: dict[str, Any] = field(default_factory=dict)


Launch = Callable[..., Outcome]


def sweep(kind: str, where: Path, *, modes: Sequence[str], launch: Launch) -> Row:
    """Build a family in the new directory `where` and try all `modes`. launch: here or in other processes."""
    source = where / "model"
    source.mkdir(parents=True)
    built = launch(write, kind, source)
    if built.verdict != "right":
        return Row(kind, {}, f"cannot be built: {built.why}")
    plain = launch(plainly, source)
    if plain.verdict != "right":
        return Row(kind, {}, f"transformers itself does not train it: {plain.why}")
    expected, verdicts, reasons = Course(**plain.course), {}, {}
    if reason := DRAWS_AT_RANDOM.get(kind):
        reasons[reason] = []
        expected = Course([], [], expected.before, math.nan)
    for mode in modes:
        out = where / mode
        outcome = launch(train, source, out, MODES[mode], ranks=2 if mode == "sp" else 1)
        if outcome.verdict == "right":
            check = partial(compare_adapted, launch=launch) if mode == "LoRA" else compare
            outcome = check(expected, outcome, source, out)
        verdicts[mode] = outcome.verdict
        if outcome.why:
            reasons.setdefault(outcome.why.replace(f"{where}/", "").replace(f"{mode}/", ""), []).append(mode)
    notes = [f"{', '.join(modes)}{': ' if modes else ''}{reason}" for reason, modes in reasons.items()]
    return Row(kind, verdicts, "; ".join(notes))


def write(kind: str, directory: Path) -> Outcome:
    """Write a tiny model of the family."""
    (write_vision_model if kind in VISION else write_model)(kind, directory)
    return Outcome("right")


def plainly(source: Path, adapter: Path | None = None) -> Outcome:
    """Train without the project."""
    return Outcome("right", course=asdict(train_plainly(source, adapter)))


def train(source: Path, out: Path, overrides: Sequence[str]) -> Outcome:
    """Train with the project; every rank calls it."""
    rows = source / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = load_config(
        [
            *(f"data.{files}_files={rows}" for files in ("train", "val")),
            *("data.prompt_key=prompt", "data.response_key=response", "data.max_length=128", "data.num_workers=1"),
            *(f"data.train_batch_size={len(ROWS)}", "data.micro_batch_size_per_gpu=2"),
            *(f"data.cache_dir={source.parent / 'cache'}", f"model.partial_pretrain={source}"),
            *("model.fsdp_config.compute_dtype=fp32", f"optim.lr={LR}", f"optim.betas={list(BETAS)}"),
            *("optim.weight_decay=0.0", f"optim.clip_grad={CLIP}", "optim.lr_scheduler=constant"),
            *("optim.warmup_steps_ratio=0.0", f"trainer.total_training_steps={STEPS}", "trainer.val_before_train=true"),
            *("trainer.test_freq=-1", "trainer.logger=[jsonl]", f"trainer.default_local_dir={out}"),
            *("trainer.async_save=false", f"trainer.timeout_s={SECONDS}"),
            *overrides,
        ]
    )
    try:
        run(config)
    except InputError as error:
        trained = (out / "metrics.jsonl").is_file() and '"train/loss"' in (out / "metrics.jsonl").read_text()
        return Outcome("wrong" if trained else "refused", in_one_line(error))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses, norms, val = (
        [line[name] for line in lines if name in line] for name in ("train/loss", "train/grad_norm", "val/loss")
    )
    return Outcome("right", course=asdict(Course(losses, norms, val[0], val[-1])))


def compare(expected: Course, outcome: Outcome, source: Path, out: Path) -> Outcome:
    """Hold a run against the plain loop, and the model it left against its source."""
    found = Course(**outcome.course)
    problems = [*differences(found, expected), *unlike(source, out)]
    if not problems:
        problems = [*reopened(source, out, found.after, expected.after)]
    return Outcome("wrong", "; ".join(problems)) if problems else outcome


def compare_adapted(expected: Course, outcome: Outcome, source: Path, out: Path, *, launch: Launch) -> Outcome:
    """Hold a LoRA run against the base model and against peft, and train its adapter on, there and here."""
    found = Course(**outcome.course)
    problems = [*differences(found, Course(expected.losses[:1], [], expected.before, math.nan)), *unlike(source, out)]
    problems += [] if problems else [*reopened(source, out, found.after, math.nan)]
    if problems:
        return Outcome("wrong", "; ".join(problems))
    adapter = out / "lora_adapter"
    in_peft = launch(plainly, source, adapter)
    if in_peft.verdict != "right":
        return Outcome("wrong", f"peft does not open the adapter: {in_peft.why}")
    further = launch(
        train, source, out.with_name("LoRA_further"), [*MODES["LoRA"], f"model.lora_adapter_path={adapter}"]
    )
    if further.verdict != "right":
        return further
    there = Course(**in_peft.course)
    if not expected.losses:  # its router draws at random
        there = Course([], [], there.before, math.nan)
    problems = [*differences(Course(**further.course), there), *apart("merged", found.after, there.before)]
    return Outcome("wrong", "; ".join(problems)) if problems else outcome


def differences(found: Course, expected: Course) -> list[str]:
    """Say where two courses part; nan is not compared."""
    problems = apart("first validation", found.before, expected.before) + apart(
        "last validation", found.after, expected.after
    )
    for step, loss in enumerate(expected.losses):
        problems += apart(f"loss {step + 1}", found.losses[step], loss)
    for step, norm in enumerate(expected.grad_norms):
        problems += apart(f"gradient norm {step + 1}", found.grad_norms[step], norm, tolerance=5e-4)
    return problems


def apart(what: str, found: float, expected: float, tolerance: float = 2e-5) -> list[str]:
    """Say that two numbers differ by more than rounding."""
    if math.isnan(expected) or math.isclose(found, expected, rel_tol=tolerance):
        return []
    return [f"{what} {found:.6f}, not {expected:.6f}"]


def unlike(source: Path, out: Path) -> list[str]:
    """Say which names, shapes and dtypes of the two directories differ."""
    theirs, ours = inventory(source), inventory(out)
    return [
        *(f"{name} is lost" for name in sorted(theirs.keys() - ours.keys())[:4]),
        *(f"{name} is new" for name in sorted(ours.keys() - theirs.keys())[:4]),
        *(f"{n} is {ours[n]}, was {theirs[n]}" for n in sorted(ours.keys() & theirs.keys()) if ours[n] != theirs[n]),
    ]


def inventory(directory: Path) -> dict[str, tuple[list[int], str]]:
    """Return (shape, dtype) of every tensor in a model directory."""
    found = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                part = file.get_slice(name)
                found[name] = (part.get_shape(), part.get_dtype())
    return found


def reopened(source: Path, out: Path, after: float, expected: float) -> list[str]:
    """Open the model that a run has left, and say what is wrong with it; `source` is what it was made of."""
    try:
        model = open_model(out)
    except Exception as error:
        return [in_one_line(error)]
    samples = samples_of(out)
    problems = [
        p for value in (after, expected) for p in apart("the reopened model's loss", loss_of(model, samples), value)
    ]
    if (reason := why_silent(model, samples)) and not why_silent(open_model(source), samples):
        problems.append(reason)
    return problems


def why_silent(model: Any, samples: list[tuple[torch.Tensor, int]]) -> str:
    """Return why a model does not generate two tokens; empty if it does."""
    prompt = samples[0][0][:, : samples[0][1]]
    try:
        answer = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=2, min_new_tokens=2, do_sample=False
        )
    except Exception as error:
        return f"generate: {in_one_line(error)}"
    return "" if answer.shape[1] == prompt.shape[1] + 2 else "it does not generate"


def in_one_line(error: BaseException) -> str:
    """Return an error's message on one line, shortened."""
    text = " ".join(str(error).split()).rpartition("and is not kept: ")[2]  # of ExportError, what is wrong
    prefix = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return prefix + (text if len(text) <= 300 else f"{text[:300]}...")


def here(function: Callable[..., Outcome], *args: Any, ranks: int = 1) -> Outcome:
    """Call `function` in this process, a world of one rank. Errors become outcomes."""
    try:
        return function(*args)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome("crashed", f"{in_one_line(error)} ({Path(where.filename).name}:{where.lineno})")


def forked(function: Callable[..., Outcome], *args: Any, ranks: int = 1) -> Outcome:
    """Call `function` in as many child processes as there are ranks, which are those of a run; the outcome of rank 0.

    Children are forks of this process, which has imported everything: they start at once and leave nothing behind.
    """
    context = multiprocessing.get_context("fork")
    port, pipes, children = free_port(), [], []
    for rank in range(ranks):
        receiver, sender = context.Pipe(duplex=False)
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        child = context.Process(target=as_child, args=(sender, environment, function, args))
        child.start()
        sender.close()
        pipes.append(receiver)
        children.append(child)
    deadline, outcomes = time.monotonic() + SECONDS, []
    for receiver in pipes:
        try:
            alive = receiver.poll(max(0.0, deadline - time.monotonic()))
            outcomes.append(receiver.recv() if alive else Outcome("crashed", f"it hangs, for {SECONDS} s"))
        except EOFError:
            outcomes.append(Outcome("crashed", "the process died"))
        if outcomes[-1].verdict == "crashed":  # the other rank waits for this one
            deadline = min(deadline, time.monotonic() + 5)
    for child in children:
        child.join(5 if all(outcome.verdict != "crashed" for outcome in outcomes) else 0)
        child.kill()
        child.join()
    return min(outcomes, key=lambda outcome: outcome.why.startswith("it hangs"))  # rank 0's, or the one with a reason


def as_child(sender: Any, environment: dict[str, Any], function: Callable[..., Outcome], args: Sequence[Any]) -> None:
    """Be one rank: call `function` and send its outcome, silently."""
    os.environ |= {name: str(value) for name, value in environment.items()}
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sender.send(here(function, *args))
    sender.close()
    os._exit(0)  # no destructors: threads of the parent are not here to be joined


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def settle() -> None:
    """Compute on the CPU, with one thread per rank, and let libraries keep silent: a sweep says one line per family."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("sft").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def main() -> int:
    """Sweep the families named on the command line, or all; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="model types of transformers; none: all of them")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--table", type=Path, default=Path(__file__).parents[1] / "docs" / "models.md")
    parser.add_argument("--keep", type=Path, help="a directory for the models, which are otherwise deleted")
    args = parser.parse_args()
    everything = [*families(), *VISION]
    if unknown := set(args.kinds) - set(everything):
        parser.error(
            f"transformers {transformers.__version__} has no causal language model {', '.join(sorted(unknown))}, or it "
            "sees and is not in scripts/sweep_vision.py"
        )
    settle()
    before = read_table(args.table)
    rows = dict(before) if args.kinds or len(args.modes) < len(MODES) else {}
    bad, started = [], time.monotonic()
    for kind in args.kinds or everything:
        where = (args.keep or Path(tempfile.mkdtemp())) / kind
        shutil.rmtree(where, ignore_errors=True)
        row = sweep(kind, where, modes=args.modes, launch=forked)
        rows[kind] = joined(before.get(kind), row)
        if args.keep is None:
            shutil.rmtree(where.parent)
        was = before[kind].verdicts if kind in before else {}
        lost = [mode for mode in row.verdicts if was.get(mode) == "right" and row.verdicts[mode] != "right"]
        if lost or {"wrong", "crashed"} & set(row.verdicts.values()):
            bad.append(kind)
        print(f"{kind}: {', '.join(f'{mode} {said}' for mode, said in row.verdicts.items())} {row.notes}", flush=True)
        write_table(args.table, rows)
    print(f"{time.monotonic() - started:.0f} s; wrong, or no longer right: {', '.join(bad) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
