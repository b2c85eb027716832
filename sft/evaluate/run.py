"""Score the validation files; then, if asked, let every row be answered, each rank its share of them."""

from __future__ import annotations

import gc
import importlib
import json
import sys
from dataclasses import replace
from datetime import timedelta
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from rich.progress import track

from sft.config import SftConfig
from sft.config.secrets import presentable
from sft.data.prompts import Prompt, read_prompts, those_that_fit
from sft.errors import InputError
from sft.evaluate.options import MODEL, Options
from sft.files import explaining_disk, replace_file
from sft.generate.answer import open_model
from sft.model.answer import Sampling, answer
from sft.model.attention import Available
from sft.model.place import build_bare_model, place, sharding_of
from sft.model.pretrained import find_model, fingerprint
from sft.parallel.device import refuse_ranks_without_a_gpu, why_on_the_cpu
from sft.parallel.mesh import build_mesh
from sft.parallel.world import (
    World,
    entering,
    log,
    log_on_main_rank_only,
    on_every_rank,
    on_main_rank,
    process_group,
    seed_everything,
)
from sft.train.ending import end_with
from sft.train.grade import grader_of
from sft.train.inputs import attention_of, refuse_other_inputs
from sft.train.reading import open_tokenizer, open_val
from sft.train.score import Score, score

MAX_BAD_ROWS = 5
DEFAULT_METRIC = "exact_match"
Numbers = dict[str, dict[str, float]]
"""What is known of each entry of data.val_files, and of all of them together."""


def main(config: SftConfig, options: Options) -> None:
    """Evaluate, print, write. Exits with 2 and one message where the user's input is to blame, with 1 and a traceback
    for a bug of ours."""
    world = World.from_environment()
    try:
        numbers = evaluate(config, options, world)
    except Exception as error:
        end_with(error, world)
    for name in numbers if world.is_main else ():
        print(presentable(line(name, numbers[name])))


def evaluate(config: SftConfig, options: Options, world: World) -> Numbers:
    """Compute the numbers of every entry of data.val_files. Every rank calls it; all get them. Raises InputError."""
    log_on_main_rank_only(world)
    refuse_ranks_without_a_gpu()
    if reason := why_on_the_cpu():
        log.warning("on the CPU: %s", reason)
    seed_everything(config.trainer.seed)
    check(config, options, world)
    if config.model.external_lib:
        importlib.import_module(config.model.external_lib)
    if config.model.lora_rank and not config.model.lora_adapter_path:
        if config.model.base_dtype != "bf16":
            log.info("model.base_dtype=%s has no effect without model.lora_adapter_path.", config.model.base_dtype)
        # New adapters would add nothing.
        config = replace(config, model=replace(config.model, lora_rank=0, base_dtype="bf16"))
    source = find_model(config.model.partial_pretrain, config.model.revision)
    tokenizer, _, new_tokens = open_tokenizer(config, source)
    numbers = score_val(config, options, source, tokenizer, new_tokens, world) if config.data.has_val else {}
    if options.harness:
        from sft.evaluate.harness import ask_harness  # needs lm-eval, which other evaluations do not

        numbers |= ask_harness(options, source, world, trust_remote_code=config.model.trust_remote_code)
    if options.metrics and world.is_main:
        with explaining_disk(f"evaluate.metrics={options.metrics}", "Make room there, or name another file."):
            replace_file(Path(options.metrics), (json.dumps(numbers, indent=2) + "\n").encode())
    return numbers


def score_val(
    config: SftConfig, options: Options, source: Path, tokenizer: Any, new_tokens: dict[str, int], world: World
) -> Numbers:
    """Score data.val_files with the sharded model, and if asked let a whole one answer them. Every rank calls it."""
    val = open_val(config, tokenizer, world)
    with process_group(world, timedelta(seconds=config.trainer.timeout_s)):
        entering("evaluation")
        refuse_other_inputs({MODEL: fingerprint(source), "data.val_files": val.fingerprint})
        mesh = build_mesh(world.size, world.device.type, sp_size=config.ulysses_sequence_parallel_size)
        attention = attention_of(config, source, Available.on(world.device))
        model, grown = build_bare_model(config, source, attention, tokens=max(new_tokens.values(), default=-1) + 1)
        place(model, config, source, mesh, sharding_of(config.model.fsdp_config), world, grown=grown)

        def progress(batches, what, total):
            """Show how far the batches are, where somebody looks at a terminal."""
            return track(batches, what, total=total, disable=not (world.is_main and sys.stdout.isatty()))

        scores = score(model, val, mesh, world.device, progress=progress)
        assert scores is not None, "nobody asked to stop"
        numbers = numbers_of(scores)
        del model, mesh  # the memory is needed for a model that lies whole on every rank
        gc.collect()
        if options.generate:
            judge(config, options, source, tokenizer, world, numbers)
    return numbers


def check(config: SftConfig, options: Options, world: World) -> None:
    """Raise InputError for keys that training could use and evaluation cannot."""
    model, sp = config.model, config.ulysses_sequence_parallel_size
    if options.harness and world.size > 1:
        raise InputError(
            "evaluate.harness: lm-evaluation-harness asks one model on one device; leave torchrun out (python -m "
            f"sft.evaluate), this is one of {world.size} ranks."
        )
    if not config.data.has_val and not options.harness:
        raise InputError("data.val_files=null: there is nothing to evaluate on; give held-out files.")
    if options.generate and not config.data.val_files:
        raise InputError(
            f"evaluate.generate=true asks the rows of data.val_files, and those that data.val_fraction="
            f"{config.data.val_fraction:g} holds out are known as tokens alone; give files, or leave generate out."
        )
    if world.size % sp:
        raise InputError(f"ulysses_sequence_parallel_size={sp} must divide the number of ranks, {world.size}.")
    if model.lora_adapter_path and (Path(model.partial_pretrain) / "lora_adapter").is_dir():
        raise InputError(
            f"model.partial_pretrain={model.partial_pretrain} is a merged model, to which model.lora_adapter_path="
            f"{model.lora_adapter_path} would be added once more; leave the path out, or give the base model."
        )
    if model.lora_adapter_path and options.generate:
        raise InputError(
            "evaluate.generate=true answers with the model directory as it is, without model.lora_adapter_path; "
            "evaluate the merged model: the run directory, or what python -m sft.export makes of a checkpoint."
        )


def numbers_of(scores: dict[str, Score]) -> Numbers:
    """Name the numbers as training does (val/loss, ...): of each file if there are several, then of all."""
    name_of_all = "all" if "all" not in scores else "all files"
    everything = {name_of_all: reduce(add, scores.values())} if len(scores) > 1 else {}
    return {name: part.numbers() for name, part in (scores | everything).items()}


def judge(config: SftConfig, options: Options, source: Path, tokenizer: Any, world: World, numbers: Numbers) -> None:
    """Add what trainer.generate_metric measures (exact_match unless it is set) to the numbers, and write every answer
    with its verdict. Every rank calls it."""
    prompts = prompts_of(config, tokenizer)
    grader = grader_of(config.trainer.generate_metric or DEFAULT_METRIC)
    # By length, dealt in turn: every rank gets as much to say.
    mine = sorted(range(len(prompts)), key=lambda n: -len(prompts[n].input_ids))[world.rank :: world.size]

    def answer_mine() -> list[tuple[int, str]]:
        model, _ = open_model(source, device=world.device, trust_remote_code=config.model.trust_remote_code)
        answers = answer(
            model,
            tokenizer,
            [prompts[n].input_ids for n in mine],
            Sampling(options.max_new_tokens),
            batch_size=options.batch_size,
            progress=lambda starts, total: track(starts, "answering", total=total, disable=not world.is_main),
        )
        return list(zip(mine, answers, strict=True))

    answers = dict(pair for share in on_every_rank("answering", answer_mine) for pair in share)
    pairs = [(answers[n], prompt.expected) for n, prompt in enumerate(prompts)]
    scores = on_main_rank("grading", lambda: grader.scores(pairs))
    is_verdict = grader.name == DEFAULT_METRIC
    verdicts = [{"correct": bool(score)} if is_verdict else {"score": score} for score in scores]
    for name in numbers:
        is_all = len(numbers) > 1 and name == list(numbers)[-1]
        of_part = [score for prompt, score in zip(prompts, scores, strict=True) if is_all or name == prompt.part]
        if of_part:
            numbers[name] |= {grader.name: sum(of_part) / len(of_part), "answers": len(of_part)}
    if options.out and world.is_main:
        lines = [
            {"row": p.where, "prompt": p.text, "answer": answers[n], "expected": p.expected} | verdicts[n]
            for n, p in enumerate(prompts)
        ]
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines)
        with explaining_disk(f"evaluate.out={options.out}", "Make room there, or name another file."):
            replace_file(Path(options.out), text.encode())
        log.info("%s: %s answers", options.out, f"{len(lines):,}")


def prompts_of(config: SftConfig, tokenizer: Any) -> list[Prompt]:
    """Return the prompts of the rows of data.val_files. Leaves out and counts those that are too long.

    Raises InputError for rows without an answer, unless they are dropped.
    """
    data, bad, too_long = config.data, [], []
    max_rows = None if data.val_max_samples < 0 else data.val_max_samples
    read = read_prompts(data, data.val_files, tokenizer, bad, max_rows=max_rows)
    prompts = list(those_that_fit(read, data.max_length, too_long))
    if bad and (data.bad_rows == "error" or not prompts):
        more = f"\n  and {len(bad) - MAX_BAD_ROWS:,} more" if len(bad) > MAX_BAD_ROWS else ""
        shown = "\n  ".join(bad[:MAX_BAD_ROWS])
        raise InputError(
            f"evaluate.generate=true: {len(bad):,} of {len(bad) + len(prompts):,} rows have no answer to compare "
            f"with:\n  {shown}{more}\nLeave such rows out (data.bad_rows=drop), or evaluate.generate=false."
        )
    if bad:
        log.warning("%s rows have no answer to compare with, and are left out; the first: %s", f"{len(bad):,}", bad[0])
    if too_long:
        log.warning("%s rows are not answered; the first: %s", f"{len(too_long):,}", too_long[0])
    return prompts


def line(name: str, numbers: dict[str, float]) -> str:
    """Write the numbers in one line: `val: loss=0.4123 perplexity=1.510 ... exact_match=0.5530 (200 answers)`."""
    told = " ".join(f"{key}={value:.6g}" for key, value in numbers.items() if key != "answers")
    return f"{name}: {told}" + (f" ({numbers['answers']:,} answers)" if "answers" in numbers else "")
