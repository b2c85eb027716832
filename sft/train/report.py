"""Report on a run: its log, its meter, run.json, and the arithmetic of a step as a sentence."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from sft.config import config_to_yaml
from sft.data.audit import audit, kept, overlap, summary
from sft.data.order.mixture import epoch_order
from sft.files import replace_file
from sft.model.place import DTYPES
from sft.model.pretrained import largest_of
from sft.model.quantised import as_whole
from sft.parallel.world import on_every_rank, on_main_rank
from sft.track.facts import RUN_JSON, write_run_json
from sft.track.metrics import Meter, device_peak, met_by_a_token, training_flops_per_token
from sft.track.run_log import RunLog, open_run
from sft.train.build import Job
from sft.train.forecast import forecast, sentence
from sft.types import StepStats

CONFIG = "config.yaml"
MOST_TOKENS_READ = 20_000_000
"""By the audit at the start of a run: a tenth of a second; `python -m sft.inspect` reads them all."""


def open_log(job: Job) -> RunLog:
    """Open the log of the run, and write config.yaml and run.json, which say what ran. A collective; rank 0 writes."""
    trainer, opened = job.config.trainer, list[RunLog]()

    def write_config() -> None:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        replace_file(job.run_dir / CONFIG, config_to_yaml(job.config).encode())

    def open_files() -> None:
        log = open_run(
            job.run_dir,
            loggers=list(trainer.logger),
            project=trainer.project_name,
            experiment=trainer.experiment_name,
            config=asdict(job.config),
            total_steps=job.total_steps,
            start_step=job.state.step,
            log_freq=trainer.log_freq,
            is_main=job.world.is_main,
        )
        opened.append(log)

    on_main_rank(f"writing {job.run_dir / CONFIG}", write_config)
    write_facts(job)
    on_every_rank(f"opening the logs in {job.run_dir}", open_files)
    return opened[0]


def write_facts(job: Job, **more: Any) -> None:
    """Write run.json: versions, command, hashes, and whatever else is known by now. A collective; rank 0 writes."""

    def write() -> None:
        write_run_json(
            job.run_dir,
            world_size=job.world.size,
            device=job.world.device.type,
            train_samples=len(job.train),
            steps=job.total_steps,
            fingerprint=job.fingerprint,
            data=data_facts(job),
            began_with=job.began_with,
            **more,
        )

    on_main_rank(f"writing {job.run_dir / RUN_JSON}", write)


def data_facts(job: Job) -> dict[str, list[dict[str, Any]]]:
    """Return each data file with the number of its rows and a hash of them and of their tokens."""
    sets = {"train": job.train, "val": job.val}
    return {
        name: [{"file": rows.name, "rows": rows.rows, "hash": rows.key} for rows in dataset.files]
        for name, dataset in sets.items()
        if dataset is not None
    }


def start_meter(job: Job, run_log: RunLog) -> Meter:
    """Start the meter of this run. Continues the counts of a resumed run."""
    config, lengths = job.model.config.get_text_config(), lengths_in_epoch(job)
    peak = device_peak(job.world.device, DTYPES[job.config.model.fsdp_config.compute_dtype])
    run_log.say(peak.source)
    heads = largest_of(config, "num_attention_heads")  # Mamba and RWKV have none
    head_dim = largest_of(config, "head_dim") or config.hidden_size // max(heads, 1)
    head, embedding = job.model.get_output_embeddings(), job.model.get_input_embeddings()
    assert head is not None and isinstance(head.weight, torch.Tensor)
    ends = (head.weight, embedding.weight)
    body = [as_whole(weight) for weight in job.model.parameters() if not any(weight is end for end in ends)]
    experts = largest_of(config, "num_experts_per_tok")
    return Meter(
        world_size=job.world.size,
        samples_per_epoch=len(job.train.mixture),
        flops_per_token=training_flops_per_token(
            met_by_a_token(body, experts),
            config.num_hidden_layers,
            heads * head_dim,
            mean_seq_len=float((lengths**2).sum() / lengths.sum()),
            num_frozen_params=met_by_a_token([weight for weight in body if not weight.requires_grad], experts),
        ),
        flops_per_supervised_token=(6.0 if head.weight.requires_grad else 4.0) * head.weight.numel(),
        peak_flops=peak.flops,
        window=job.config.trainer.log_freq,
        samples_seen=job.state.samples_seen,
        tokens_seen=job.state.tokens_seen,
    )


def lengths_in_epoch(job: Job) -> np.ndarray:
    """Return the tokens of every sample of the first epoch, repeated ones as often as they are seen, float64."""
    mixture = job.train.mixture
    return job.train.samples.lengths[epoch_order(mixture, job.config.trainer.seed, 0)].astype(np.float64)


def of_groups(job: Job, stats: StepStats) -> dict[str, float]:
    """Return train/lr/<name> of every group of optim.groups, in the step that just ended."""
    groups = job.optimizer.param_groups
    return {f"train/lr/{group['name']}": stats.lr * group["lr_share"] for group in groups if group["name"]}


def of_sources(job: Job, stats: StepStats) -> dict[str, float]:
    """Return data/samples/<name> and train/loss/<name> of the step that just ended; {} where there is a single source.

    No loss for a source that had nothing in this step.
    """
    mixture = job.train.mixture
    if len(mixture.sources) == 1:
        return {}
    counts = mixture.count(job.samples_of(job.state.step))
    losses = {name: loss for name, loss in zip(counts, stats.losses, strict=True) if counts[name]}
    return {f"data/samples/{name}": count for name, count in counts.items()} | {
        f"train/loss/{name}": loss for name, loss in losses.items()
    }


def describe_end(job: Job) -> str:
    """Say how a run that is over came to its end, and what would make it go on, as one clause."""
    trainer, step, total = job.config.trainer, job.state.step, job.total_steps
    if step >= total:
        return f"finished (step {step} of {total})"
    return (
        f"finished by early stopping (step {step} of {total}: nothing better by "
        f"trainer.early_stop_metric={trainer.early_stop_metric} in {job.state.course.stale} validations; it goes on "
        f"without that key, or with more than trainer.early_stop_patience={trainer.early_stop_patience})"
    )


def describe_step(job: Job) -> str:
    """Return the arithmetic of a step in one sentence; numbers that vary between steps are those of the next step."""
    next_step = job.state.step + 1
    view = forecast(
        job.train,
        job.plan,
        steps=range(next_step, next_step + 1),
        dp_size=job.mesh.dp_size,
        sp_size=job.mesh.sp_size,
    )
    return sentence(view, job.train, job.plan.batch_size)


def describe_data(job: Job) -> list[str]:
    """Give the short version of `python -m sft.inspect`: what was kept, what trains, what looks like a mistake."""
    told = summary(audit(job.train, job.stop_token_ids, most_tokens=MOST_TOKENS_READ), "train")
    if job.val is not None:
        both = overlap(job.val, job.train)
        shared = f"; samples that are in the training data too: {both}" if both.count else ""
        told.append(f"val: {kept(audit(job.val, job.stop_token_ids, most_tokens=MOST_TOKENS_READ))}{shared}")
    return told
