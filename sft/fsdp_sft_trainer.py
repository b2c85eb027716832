"""Supervised fine-tuning, top to bottom: main -> run -> (build) -> fit -> train_step -> (validate, save).

    torchrun --standalone --nproc_per_node=2 -m sft.fsdp_sft_trainer data.train_files=... model.partial_pretrain=...

The one idea: a step is a fixed set of samples, and its loss is Σ w·CE / Σ w over all their tokens. Micro-batches,
ranks and packing decide who computes what, never the number.
"""

if __name__ == "__main__":
    # Help and bad configurations are answered before the seconds that importing torch takes. With a good one, this
    # file is imported by its name, and the story begins below.
    from sft.config import cli
    from sft.config.cli import without_collections
    from sft.config.streams import steady_streams
    from sft.train.sweep import Sweep

    def start(config) -> None:
        with without_collections():
            from sft.train.head_start import begin

        head_start = begin(config)
        with without_collections():
            from sft.fsdp_sft_trainer import main

        main(config, head_start)

    steady_streams(out_is_a_log=True)
    try:
        cli(start, sweeper=Sweep)
    except KeyboardInterrupt:  # among the imports
        raise SystemExit(130) from None
    raise SystemExit

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

from sft.checkpoint.lock import sole_use_of
from sft.config import SftConfig
from sft.data.order.prefetch import prefetch
from sft.errors import InputError
from sft.model.loss_form import LossForm
from sft.model.noise import noisy_embeddings
from sft.parallel.device import refuse_ranks_without_a_gpu, why_on_the_cpu
from sft.parallel.fsdp import begin_micro_batch
from sft.parallel.world import (
    ALL_RANKS,
    World,
    entering,
    log,
    log_on_main_rank_only,
    process_group,
    seed_everything,
    sum_on_device,
)
from sft.track.run_log import RunLog
from sft.train.answers import choose_questions, sample_if_due
from sft.train.build import Job, build
from sft.train.ending import end_at_once, end_with
from sft.train.forecast_memory import explaining_memory
from sft.train.head_start import HeadStart
from sft.train.inputs import read_inputs, refuse_other_data
from sft.train.loss import token_ce_sum
from sft.train.optim import lr_at, squared_norm_of_gradients, update
from sft.train.places import refuse_what_is_in_the_way
from sft.train.profile import Profiler
from sft.train.report import describe_data, describe_end, describe_step, of_groups, of_sources, open_log, start_meter
from sft.train.requests import Requests, listening
from sft.train.result import Start, summarise
from sft.train.save import finish, is_complete, publish_what_differs, save_if_best, save_if_due
from sft.train.validate import validate_if_due, watch
from sft.types import Batch, Counts, StepStats, TrainState

MAX_SKIPS_IN_A_ROW = 5


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind. output_dir is a Hugging Face model directory, unless the run was stopped.

    metrics: of the last step and of the last validation, also where an earlier process did them.
    """

    steps: int
    metrics: dict[str, float]
    output_dir: Path
    stopped: bool = False
    stopped_by_signal: int = 0  # its number


def main(config: SftConfig, head_start: HeadStart | None = None) -> None:
    """Run, and exit: with 2 and one message where the user's input is to blame, with 1 and a traceback for a bug of
    ours, with 128 + N where signal N stopped it."""
    world = World.from_environment()
    try:
        result = run(config, head_start)
    except KeyboardInterrupt:  # before the first step; from then on it is a request like others
        end_at_once(130)
    except Exception as error:
        end_with(error, world)
    if result.stopped_by_signal:
        sys.exit(128 + result.stopped_by_signal)


def run(config: SftConfig, head_start: HeadStart | None = None) -> RunResult:
    """Train as configured and leave a Hugging Face model in trainer.default_local_dir.

    head_start: what tokenises its rows already

    Every rank calls it (torchrun does; alone it is a world of one). Raises InputError for input it cannot use.
    """
    world = World.from_environment()
    log_on_main_rank_only(world)
    refuse_ranks_without_a_gpu()
    if reason := why_on_the_cpu():
        log.warning("training on the CPU: %s", reason)
    seed_everything(config.trainer.seed)
    log.info("run directory: %s", config.trainer.default_local_dir)
    refuse_what_is_in_the_way(config)
    inputs = read_inputs(config, world, head_start)
    run_dir = Path(config.trainer.default_local_dir)
    with process_group(world, timedelta(seconds=config.trainer.timeout_s)), sole_use_of(run_dir):
        job = build(config, world, inputs)
        result = fit(job)
        del inputs, job  # they hold the model, which must be gone before the process group is: see process_group
        return result


def fit(job: Job) -> RunResult:
    """Train to the last step, validate and save on the way, and leave the model in the run directory."""
    state = job.state
    if is_complete(job):
        publish_what_differs(job)
        log.info("%s is %s: nothing to do", job.run_dir, describe_end(job))
        return RunResult(state.step, state.course.last_metrics, job.run_dir)

    requests, start = Requests(), Start.of(job)
    with listening(job.run_dir, job.world, lambda: job.saver.is_writing) as listener, open_log(job) as run_log:
        for line in [*describe_data(job), describe_step(job)] if job.world.is_main else []:
            run_log.say(line)
        meter, questions = start_meter(job, run_log), choose_questions(job, run_log)
        profiler = Profiler(job.config.trainer.profile_steps, job.run_dir, job.world, total_steps=job.total_steps)
        parts, metrics = prefetch(parts_from(job, state.step + 1)), {}
        # Before the first step, or where the run was stopped.
        if missed := validate_if_due(job, questions, run_log, listener):
            run_log.log(state.step, missed)
            watch(job, missed, run_log)
            save_if_best(job, run_log)
        while not job.is_over and not requests.stop:
            entering(f"step {state.step + 1}")
            waited_since = time.perf_counter()
            micro_batches, weight_sums = next(parts)
            data_wait_s = time.perf_counter() - waited_since

            with explaining_memory(job.memory, f"step {state.step + 1}"), profiler.around(state.step + 1):
                stats = train_step(job, micro_batches, weight_sums, listener.wishes)
            advance(state, stats)
            metrics = meter.measure(stats, data_wait_s) | of_sources(job, stats) | of_groups(job, stats)
            metrics |= validate_if_due(job, questions, run_log, listener)
            run_log.log(state.step, metrics)
            watch(job, metrics, run_log)
            sample_if_due(job, questions, run_log, listener)
            if stats.skipped:
                note_skipped(job, stats, run_log)
            requests = listener.agreed(stats.wishes)
            save_if_due(job, requests, run_log)
            meter.restart_clock()
        if requests.stop:
            run_log.say(f"stopped after step {state.step} of {job.total_steps}; the same command goes on from here")
            summarise(job, start, run_log, ended="stopped")
            if job.hub:
                job.hub.close(wait=False)
        else:
            finish(job, run_log, start)
    if job.hub and not requests.stop:
        job.hub.close()
    return RunResult(
        state.step, state.course.last_metrics | metrics, job.run_dir, requests.stop, stopped_by_signal=requests.signal
    )


def train_step(
    job: Job,
    micro_batches: list[Batch],
    weight_sums: list[float],
    wishes: Callable[[], Mapping[str, float]] = dict,
) -> StepStats:
    """Take one optimizer step over all ranks: loss = Σ w·CE / Σ w, however the samples are split.

    micro_batches: this rank's part. weight_sums: Σ w of all parts, by source of the data, known before forward: a rank
    without supervised tokens would divide by its own zero. wishes: what this rank was asked meanwhile; it is summed
    over the ranks with everything else. If loss or gradient is not finite on any rank, nothing is updated on any.
    """
    model, optimizer, optim = job.model, job.optimizer, job.config.optim
    weight_sum, sources = sum(weight_sums), len(weight_sums)
    form = LossForm(optim.loss, optim.label_smoothing, optim.z_loss)
    shares = torch.zeros(sources, dtype=torch.float64, device=job.world.device)  # what each source adds to the loss
    job.routers.begin_step(partial(token_ce_sum, model), micro_batches, job.world.device)
    for number, batch in enumerate(micro_batches, start=1):
        begin_micro_batch(model, job.sharding, is_last=number == len(micro_batches))
        here = batch.to(job.world.device)
        with noisy_embeddings(model, here, job.config.model.neftune_alpha), job.routers.watching(here):
            share, of_sources = token_ce_sum(model, here, weight_sum=weight_sum, sources=sources, loss=form)
        (share + job.routers.loss()).backward()
        shares += of_sources

    counts = sum((batch.counts for batch in micro_batches), Counts())
    loss_of = {f"loss of source {number}": share for number, share in enumerate(shares)}
    # Ranks of dp_replicate hold the same part of each gradient.
    square_sum = {"grad_norm²": squared_norm_of_gradients(model) / job.mesh.dp_replicate}
    asked = dict(wishes())
    values = loss_of | square_sum | asdict(counts) | job.routers.to_be_summed() | asked
    on_device = sum_on_device(ALL_RANKS, *values.values())
    lr = lr_at(job.state.updates + 1, job.total_steps, optim)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]
    grad_norm = on_device[sources].sqrt()
    # Sums over all ranks: every rank sees the same.
    finite = on_device[: sources + 1].isfinite().all()
    update(optimizer, model, grad_norm, finite, optim.clip_grad)
    optimizer.zero_grad()

    # The one place where the host waits for the device, which by then has all of the step to do.
    *read, finite = torch.cat([on_device, finite[None]]).tolist()
    sums = dict(zip(values, read, strict=True))
    shares, counts = [sums[name] for name in loss_of], counts.of(sums)
    refuse_other_data(counts.weight_sum, weight_sum)
    return StepStats(
        loss=sum(shares),
        losses=tuple(share * weight_sum / w if w else math.nan for share, w in zip(shares, weight_sums, strict=True)),
        grad_norm=math.sqrt(sums["grad_norm²"]),
        lr=lr,
        counts=counts,
        skipped=not finite,
        router_aux_loss=sums.get("router_aux_loss"),
        largest_expert_share=sums["largest_expert"] / counts.tokens if "largest_expert" in sums else None,
        wishes={name: sums[name] for name in asked},
    )


def parts_from(job: Job, first: int) -> Iterator[tuple[list[Batch], list[float]]]:
    """Yield (this rank's micro-batches, Σ w over all ranks by source) of step `first`, of the next one, and so on."""
    if job.world.device.type == "cuda":
        torch.cuda.set_device(job.world.device)  # of the thread that prefetches: it pins memory
    for step in range(first, job.total_steps + 1):
        sample_ids = job.samples_of(step)
        yield list(job.batches_of(step)), job.train.weight_sums(sample_ids)


def advance(state: TrainState, stats: StepStats) -> None:
    """Move the state one step on. A skipped step took its samples, but moved neither optimizer nor schedule."""
    state.step += 1
    state.samples_seen += stats.counts.samples
    state.tokens_seen += stats.counts.tokens
    state.updates += not stats.skipped
    state.skipped_total += stats.skipped
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if stats.skipped else 0


def note_skipped(job: Job, stats: StepStats, run_log: RunLog) -> None:
    """Write down which rows a skipped step held, and stop a run that only skips."""
    step = job.state.step
    rows = [job.train.samples.where(i) for i in job.samples_of(step)]
    run_log.skipped_step(step, loss=stats.loss, grad_norm=stats.grad_norm, rows=rows)
    if job.state.skipped_in_a_row >= MAX_SKIPS_IN_A_ROW:
        job.saver.settle()
        raise InputError(
            f"{MAX_SKIPS_IN_A_ROW} steps in a row had a loss or gradient that is not finite, the last at step {step}. "
            "Nothing was updated by them; their rows are in skipped_steps.jsonl. "
            "Look at these rows, lower optim.lr, or train in model.fsdp_config.compute_dtype=fp32."
        )
