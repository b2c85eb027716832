"""Supervised fine-tuning, top to bottom: main -> run -> build -> fit -> train_step -> evaluate.

    torchrun --standalone --nproc_per_node=2 -m sft.fsdp_sft_trainer data.train_files=... model.partial_pretrain=...

The one idea: a step is a fixed set of samples, and its loss is Σ w·CE / Σ w over all their tokens. Micro-batches,
ranks and packing decide who computes what, never the number.
"""

if __name__ == "__main__":
    # Help and bad configurations are answered before the seconds that importing torch takes. With a good one, this
    # file is imported by its name, and the story begins below.
    from sft.config import cli

    def start(config) -> None:
        from sft.fsdp_sft_trainer import main

        main(config)

    cli(start)
    raise SystemExit

import importlib
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from sft import checkpoint
from sft.config import SftConfig, config_to_yaml
from sft.data import Dataset, open_dataset, plan, prefetch, stop_token_ids, template_fingerprint
from sft.distributed import ALL_RANKS, World, log, log_on_main_rank_only, process_group, seed_everything, sum_over
from sft.errors import InputError
from sft.export import export
from sft.loss import token_ce_sum, token_ce_sum_and_hits
from sft.metrics import Meter, device_peak, training_flops_per_token
from sft.model import (
    adapter_settings,
    build_skeleton,
    decoder_layers,
    find_model,
    load_config,
    load_tokenizer,
    load_weights,
)
from sft.optim import adamw, lr_at
from sft.parallel import Mesh, build_mesh, checkpoint_activations, exchange_heads, shard, split_tokens
from sft.track import RunLog, check_loggers, open_run, write_run_json
from sft.types import Batch, StepStats, TrainState

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MAX_SKIPS_IN_A_ROW = 5


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind. output_dir is a Hugging Face model directory."""

    steps: int
    metrics: dict[str, float]
    output_dir: Path


@dataclass
class Job:
    """Everything a run holds while it trains."""

    config: SftConfig
    world: World
    mesh: Mesh
    model: PreTrainedModel  # a causal LM, sharded by FSDP2
    optimizer: torch.optim.Optimizer
    train: Dataset
    val: Dataset | None
    state: TrainState
    total_steps: int
    steps_per_epoch: int
    fingerprint: dict[str, Any]  # what a checkpoint must share with this run to continue it
    source: Path  # the model directory the weights came from
    stop_token_ids: list[int]
    chat_template: str | None  # the one trained with, where it is not the tokenizer's own


def main(config: SftConfig) -> None:
    """Run, and exit with code 2 and one message where the user's input is to blame."""
    world = World.from_environment()
    try:
        run(config)
    except InputError as error:
        if world.local_rank == 0:  # what is wrong with a file may be wrong on one node only
            print(f"error: {error}" if world.is_main else f"error on rank {world.rank}: {error}", file=sys.stderr)
        sys.exit(2)


def run(config: SftConfig) -> RunResult:
    """Train as configured and leave a Hugging Face model in trainer.default_local_dir.

    Every rank calls it (torchrun does; alone it is a world of one). Raises InputError for input it cannot use.
    """
    world = World.from_environment()
    log_on_main_rank_only(world)
    seed_everything(config.trainer.seed)
    check_loggers(list(config.trainer.logger))
    if config.model.external_lib:
        importlib.import_module(config.model.external_lib)
    source = find_model(config.model.partial_pretrain)
    tokenizer, chat_template = open_tokenizer(config, source)
    train, val = open_data(config, tokenizer, world)  # outside of the process group: no timeout runs meanwhile
    with process_group(world):
        return fit(build(config, world, source, tokenizer, chat_template, train, val))


def build(
    config: SftConfig,
    world: World,
    source: Path,
    tokenizer: Any,
    chat_template: str | None,
    train: Dataset,
    val: Dataset | None,
) -> Job:
    """Mesh, sharded model, optimizer, and the state to continue from."""
    mesh = build_mesh(world.size, world.device.type, sp_size=config.ulysses_sequence_parallel_size)
    model = build_model(config, source, mesh, world)
    optim = config.optim
    optimizer = adamw(model, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
    fingerprint = {
        "data": train.fingerprint,
        "model": config.model.partial_pretrain,
        "lora": adapter_settings(config.model) or None,
        "lora_adapter": config.model.lora_adapter_path,
        "seed": config.trainer.seed,
        "template": template_fingerprint(tokenizer, config.data.apply_chat_template_kwargs),
        "train_batch_size": config.data.train_batch_size,
    }
    steps_per_epoch = plan.steps_per_epoch(len(train), config.data.train_batch_size)
    return Job(
        config=config,
        world=world,
        mesh=mesh,
        model=model,
        optimizer=optimizer,
        train=train,
        val=val,
        state=resume(config, model, optimizer, world, fingerprint),
        total_steps=config.trainer.total_training_steps or config.trainer.total_epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        fingerprint=fingerprint,
        source=source,
        stop_token_ids=stop_token_ids(tokenizer, **config.data.apply_chat_template_kwargs),
        chat_template=chat_template,
    )


def build_model(config: SftConfig, source: Path, mesh: Mesh, world: World) -> PreTrainedModel:
    """The model of `source`, sharded over mesh.fsdp; no rank ever holds all of it. With LoRA, adapters inside."""
    trust, fsdp, adapters = config.model.trust_remote_code, config.model.fsdp_config, adapter_settings(config.model)
    master_dtype, compute_dtype = DTYPES[fsdp.model_dtype], DTYPES[fsdp.compute_dtype]
    model = build_skeleton(
        load_config(source, trust_remote_code=trust),
        packed=config.use_remove_padding,
        dtype=compute_dtype if adapters else master_dtype,  # what LoRA freezes never moves: no master copy
        trust_remote_code=trust,
    )
    if adapters:
        from sft.model import lora  # needs peft, which other runs do not

        name = str(source.resolve()) if Path(config.model.partial_pretrain).is_dir() else config.model.partial_pretrain
        lora.add_adapters(model, base=name, dtype=master_dtype, **adapters)
    if mesh.sp_size > 1:
        exchange_heads(model, mesh.sp_group)
    if config.model.enable_gradient_checkpointing:
        checkpoint_activations(model)
    shard(model, decoder_layers(model), mesh.fsdp, compute_dtype)
    load_weights(model, source, world.device, trust_remote_code=trust)
    if adapters:
        lora.start_adapters(model, seed=config.trainer.seed, adapter=config.model.lora_adapter_path)
    return model


def fit(job: Job) -> RunResult:
    """Train to the last step, validate and save on the way, and leave the model in the run directory."""
    trainer, state, run_dir = job.config.trainer, job.state, Path(job.config.trainer.default_local_dir)
    if state.step >= job.total_steps and is_complete(run_dir, state):
        log.info("%s is finished (step %d of %d): nothing to do", run_dir, state.step, job.total_steps)
        return RunResult(state.step, {}, run_dir)

    metrics: dict[str, float] = {}
    with open_log(job) as run_log:
        run_log.say(describe_step(job))
        if len(job.train) < job.config.data.train_batch_size:
            run_log.warn(
                f"{len(job.train)} samples are fewer than data.train_batch_size={job.config.data.train_batch_size}: "
                "every step trains all of them"
            )
        meter = start_meter(job)
        batches = prefetch(batches_from(job, state.step + 1))
        while state.step < job.total_steps:
            waited_since = time.perf_counter()
            micro_batches = next(batches)
            data_wait_s = time.perf_counter() - waited_since

            stats = train_step(job, micro_batches)
            count(state, stats)
            metrics = meter.measure(stats, data_wait_s)
            if is_due(trainer.test_freq, job):
                metrics |= evaluate(job)
            run_log.log(state.step, metrics)
            if stats.skipped:
                note_skipped(job, stats, run_log)
            if trainer.save_freq > 0 and state.step % trainer.save_freq == 0:
                save(job, run_log)
            meter.restart_clock()
        finish(job, run_log)
    return RunResult(state.step, metrics, run_dir)


def train_step(job: Job, micro_batches: list[Batch]) -> StepStats:
    """One optimizer step over all ranks: loss = Σ w·CE / Σ w, however the samples are split.

    If loss or gradient is not finite on any rank, every rank knows it and nothing is updated.
    """
    model, optimizer, optim = job.model, job.optimizer, job.config.optim
    # Count before forward: a rank without supervised tokens would divide by its own zero.
    weight_sum, samples, tokens, supervised_tokens, positions = sum_over(
        ALL_RANKS,
        sum(batch.weight_sum for batch in micro_batches),
        sum(batch.num_samples for batch in micro_batches),
        sum(batch.num_tokens for batch in micro_batches),
        sum(batch.num_supervised_tokens for batch in micro_batches),
        sum(batch.input_ids.numel() for batch in micro_batches),
    )
    ce_sum = torch.zeros((), device=job.world.device)
    for batch in micro_batches:
        ce = token_ce_sum(model, batch.to(job.world.device))
        (ce / weight_sum).backward()
        ce_sum += ce.detach()

    (loss,) = (total / weight_sum for total in sum_over(ALL_RANKS, ce_sum.item()))
    grad_norm = clip_gradients(model, optim.clip_grad)
    lr = lr_at(
        job.state.updates + 1,
        job.total_steps,
        lr=optim.lr,
        schedule=optim.lr_scheduler,
        warmup_steps_ratio=optim.warmup_steps_ratio,
        min_lr_ratio=optim.min_lr_ratio,
    )
    finite = math.isfinite(loss) and math.isfinite(grad_norm)  # sums over all ranks: every rank sees the same
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad()
    return StepStats(
        loss=loss,
        grad_norm=grad_norm,
        lr=lr,
        weight_sum=weight_sum,
        samples=int(samples),
        tokens=int(tokens),
        supervised_tokens=int(supervised_tokens),
        padding=int(positions - tokens),
        skipped=not finite,
    )


@torch.no_grad()
def evaluate(job: Job) -> dict[str, float]:
    """Token-weighted loss, perplexity and accuracy over every validation sample, equal on any number of ranks."""
    if job.val is None:
        return {}
    job.model.eval()
    totals = torch.zeros(2, dtype=torch.float64)
    weight_sum = supervised_tokens = 0.0
    for batch in batches_of(job, job.val, np.arange(len(job.val))):
        totals += torch.stack(token_ce_sum_and_hits(job.model, batch.to(job.world.device))).cpu()
        weight_sum += batch.weight_sum
        supervised_tokens += batch.num_supervised_tokens
    job.model.train()
    ce_sum, hits, weight_sum, supervised_tokens = sum_over(ALL_RANKS, *totals.tolist(), weight_sum, supervised_tokens)
    loss = ce_sum / weight_sum
    return {
        "val/loss": loss,
        "val/perplexity": math.exp(min(loss, 700.0)),  # e^700 is the last one a float holds
        "val/token_accuracy": hits / supervised_tokens,
    }


def batches_from(job: Job, first: int) -> Iterator[list[Batch]]:
    """This rank's micro-batches of step `first`, of the next one, and so on."""
    for step in range(first, job.total_steps + 1):
        yield list(batches_of(job, job.train, samples_of(job, step)))


def batches_of(job: Job, dataset: Dataset, sample_ids: np.ndarray) -> Iterator[Batch]:
    """The micro-batches in which this rank computes its part of `sample_ids`: its samples, and its tokens of them."""
    mesh = job.mesh
    for batch in dataset.batches(sample_ids, dp_size=mesh.dp_size, dp_rank=mesh.dp_rank):
        yield split_tokens(batch, part=mesh.sp_rank, parts=mesh.sp_size)


def samples_of(job: Job, step: int) -> np.ndarray:
    """Sample ids of a step, the same on every rank and in every run with this data, seed and batch size."""
    data = job.config.data
    return plan.step_samples(
        step, num_samples=len(job.train), batch_size=data.train_batch_size, seed=job.config.trainer.seed
    )


def clip_gradients(model: torch.nn.Module, max_norm: float) -> float:
    """Scale all gradients so that their norm over all ranks is at most max_norm; returns the norm before."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def count(state: TrainState, stats: StepStats) -> None:
    """Move the state one step on. A skipped step took its samples, but moved neither optimizer nor schedule."""
    state.step += 1
    state.samples_seen += stats.samples
    state.tokens_seen += stats.tokens
    state.updates += not stats.skipped
    state.skipped_total += stats.skipped
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if stats.skipped else 0


def note_skipped(job: Job, stats: StepStats, run_log: RunLog) -> None:
    """Write down which rows a skipped step held, and stop a run that only skips."""
    step = job.state.step
    rows = [job.train.samples.where(i) for i in samples_of(job, step)]
    run_log.skipped_step(step, loss=stats.loss, grad_norm=stats.grad_norm, rows=rows)
    if job.state.skipped_in_a_row >= MAX_SKIPS_IN_A_ROW:
        raise InputError(
            f"{MAX_SKIPS_IN_A_ROW} steps in a row had a loss or gradient that is not finite, the last at step {step}. "
            "Nothing was updated by them; their rows are in skipped_steps.jsonl. "
            "Look at these rows, lower optim.lr, or train in model.fsdp_config.compute_dtype=fp32."
        )


def is_due(test_freq: int, job: Job) -> bool:
    """Whether to validate after this step: every test_freq steps, or every epoch (-1); always after the last."""
    if job.val is None or test_freq == 0:
        return False
    interval = job.steps_per_epoch if test_freq == -1 else test_freq
    return job.state.step % interval == 0 or job.state.step == job.total_steps


def save(job: Job, run_log: RunLog) -> None:
    """Commit a checkpoint of this step and delete the oldest beyond max_ckpt_to_keep."""
    run_dir = Path(job.config.trainer.default_local_dir)
    path = checkpoint.save(run_dir, job.state, job.model, job.optimizer, world=job.world, fingerprint=job.fingerprint)
    checkpoint.retain(run_dir, job.config.trainer.max_ckpt_to_keep, world=job.world)
    run_log.say(f"saved {path}")


def finish(job: Job, run_log: RunLog) -> None:
    """The last checkpoint, and the model itself in the run directory."""
    run_dir = Path(job.config.trainer.default_local_dir)
    save(job, run_log)
    export(
        job.model,
        job.source,
        run_dir,
        world=job.world,
        stop_token_ids=job.stop_token_ids,
        chat_template=job.chat_template,
    )
    if job.world.is_main:
        write_run_json(run_dir, **facts(job), exported_step=job.state.step)
    run_log.say(f"the model is in {run_dir}: AutoModelForCausalLM.from_pretrained({str(run_dir)!r})")


def resume(
    config: SftConfig,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World,
    fingerprint: dict[str, Any],
) -> TrainState:
    """The state of the newest good checkpoint (or of the one asked for), loaded; a fresh one if there is none."""
    trainer = config.trainer
    run_dir = Path(trainer.default_local_dir)
    if trainer.resume_mode == "disable":
        checkpoint.start_over(run_dir, world=world)
        return TrainState()
    if trainer.resume_mode == "resume_path":
        assert trainer.resume_from_path is not None, "the config door let resume_path pass without a path"
        found = Path(trainer.resume_from_path)
        if problems := checkpoint.verify(found, world=world):
            raise InputError(f"trainer.resume_from_path={found} is not usable: {'; '.join(problems)}.")
    else:
        found = checkpoint.newest(run_dir, world=world)
    if found is None:
        return TrainState()
    state = checkpoint.load(found, model, optimizer, world=world, fingerprint=fingerprint)
    log.info("continuing from %s", found)
    return state


def open_log(job: Job) -> RunLog:
    """What a person sees of the run, on rank 0; also config.yaml and run.json, which say what ran."""
    config, trainer = job.config, job.config.trainer
    run_dir = Path(trainer.default_local_dir)
    if job.world.is_main:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(config_to_yaml(config))
        write_run_json(run_dir, **facts(job))
    return open_run(
        run_dir,
        loggers=list(trainer.logger),
        project=trainer.project_name,
        experiment=trainer.experiment_name,
        config=asdict(config),
        total_steps=job.total_steps,
        start_step=job.state.step,
        log_freq=trainer.log_freq,
        is_main=job.world.is_main,
    )


def facts(job: Job) -> dict[str, Any]:
    """What run.json tells beside versions and command."""
    return {
        "world_size": job.world.size,
        "device": str(job.world.device.type),
        "train_samples": len(job.train),
        "steps": job.total_steps,
        "fingerprint": job.fingerprint,
    }


def start_meter(job: Job) -> Meter:
    """The meter of this run, its clock ticking; continues the counts of a resumed run."""
    config, lengths = job.model.config, job.train.samples.lengths.astype(np.float64)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head, embedding = job.model.get_output_embeddings(), job.model.get_input_embeddings()
    assert head is not None and isinstance(head.weight, torch.Tensor)
    ends = (head.weight, embedding.weight)
    body = [weight for weight in job.model.parameters() if not any(weight is end for end in ends)]
    return Meter(
        world_size=job.world.size,
        samples_per_epoch=len(job.train),
        flops_per_token=training_flops_per_token(
            sum(weight.numel() for weight in body),
            config.num_hidden_layers,
            config.num_attention_heads * head_dim,
            mean_seq_len=float((lengths**2).sum() / lengths.sum()),
            num_frozen_params=sum(weight.numel() for weight in body if not weight.requires_grad),
        ),
        flops_per_supervised_token=(6.0 if head.weight.requires_grad else 4.0) * head.weight.numel(),
        peak_flops=device_peak(job.world.device, DTYPES[job.config.model.fsdp_config.compute_dtype]).flops,
        window=job.config.trainer.log_freq,
        samples_seen=job.state.samples_seen,
        tokens_seen=job.state.tokens_seen,
    )


def is_complete(run_dir: Path, state: TrainState) -> bool:
    """Whether the model of this very step is there; run.json says so after the export."""
    try:
        return json.loads((run_dir / "run.json").read_text()).get("exported_step") == state.step
    except (OSError, ValueError):
        return False


def open_tokenizer(config: SftConfig, source: Path) -> tuple[Any, str | None]:
    """The tokenizer, with data.chat_template (text or file) in place of its own; that template, if one was given."""
    tokenizer = load_tokenizer(source, trust_remote_code=config.model.trust_remote_code)
    given = config.data.chat_template
    if given is None:
        return tokenizer, None
    if "{" not in given and not Path(given).is_file():
        raise InputError(f"data.chat_template={given!r} is neither a file nor a Jinja template.")
    tokenizer.chat_template = given if "{" in given else Path(given).read_text()
    return tokenizer, tokenizer.chat_template


def open_data(config: SftConfig, tokenizer: Any, world: World) -> tuple[Dataset, Dataset | None]:
    """The training and the validation samples, tokenised by one process per node, memory-mapped by all."""
    max_tokens = config.data.max_tokens_per_gpu
    if max_tokens is not None:
        max_tokens *= config.ulysses_sequence_parallel_size  # each rank of the group holds its part of the row

    def open_files(files: tuple[str, ...], max_samples: int) -> Dataset:
        return open_dataset(
            config.data,
            files,
            max_samples=max_samples,
            max_tokens=max_tokens,
            packed=config.use_remove_padding,
            tokenizer=tokenizer,
            build_here=world.local_rank == 0,
            say=log.info,
        )

    train = open_files(config.data.train_files, config.data.train_max_samples)
    val = open_files(config.data.val_files, config.data.val_max_samples) if config.data.val_files else None
    return train, val


def describe_step(job: Job) -> str:
    """The arithmetic of a step as one sentence; the number of micro-batches is that of the next step."""
    mesh, train = job.mesh, job.train
    ids = samples_of(job, job.state.step + 1)
    micro_batches = len(train.micro_batches(ids, dp_size=mesh.dp_size, dp_rank=mesh.dp_rank))
    ranks = f"{mesh.dp_size} dp" + (f" (of {mesh.sp_size} sp ranks each)" if mesh.sp_size > 1 else "")
    size = f"up to {train.max_tokens:,} tokens" if train.max_tokens else f"{train.micro_batch_size} samples"
    return (
        f"step = {ranks} x {micro_batches} micro-batches of {size} = {len(ids)} samples, about "
        f"{train.samples.lengths.mean() * len(ids):,.0f} tokens; {job.total_steps:,} steps = "
        f"{job.total_steps / job.steps_per_epoch:.2f} epochs of {job.steps_per_epoch:,}"
    )
