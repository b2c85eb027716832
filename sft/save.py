"""When a run saves, and what: checkpoints on the way, the model at the end."""

from __future__ import annotations

import time
from pathlib import Path

from sft.build import Job
from sft.checkpoint import MODEL_DIR, Kind
from sft.export import export, publish
from sft.report import write_facts
from sft.requests import Requests
from sft.track import RunLog


def save_if_due(job: Job, requests: Requests, run_log: RunLog) -> None:
    """Begin the checkpoint that is due or asked for after this step; or commit the one that all ranks have written."""
    if kind := kind_due(job, requests):
        save(job, kind, run_log, wait=requests.stop)
    elif job.saver.has_begun and requests.may_settle:
        run_log.say(f"saved {job.saver.settle()}")


def kind_due(job: Job, requests: Requests) -> Kind | None:
    """Which kind of checkpoint this step ends with: by interval, on demand, because the run stops. BOTH joins two."""
    trainer, step = job.config.trainer, job.state.step
    if step == job.total_steps and not requests.stop:
        return None  # finish saves BOTH
    state = requests.stop or (trainer.save_freq > 0 and step % trainer.save_freq == 0)
    model = trainer.save_hf_freq > 0 and step % trainer.save_hf_freq == 0
    asked = {requests.save} | ({"STATE"} if state else set()) | ({"SAMPLER"} if model else set())
    if "BOTH" in asked or {"STATE", "SAMPLER"} <= asked:
        return "BOTH"
    return "STATE" if "STATE" in asked else "SAMPLER" if "SAMPLER" in asked else None


def save(job: Job, kind: Kind, run_log: RunLog, *, wait: bool) -> None:
    """Begin a checkpoint of this step, having finished the one before; says what was committed."""
    started = time.perf_counter()

    def write_model(target: Path) -> None:
        export(
            job.model,
            job.inputs.source,
            target,
            world=job.world,
            stop_token_ids=job.stop_token_ids,
            chat_template=job.inputs.chat_template,
            new_tokens=job.inputs.new_tokens,
        )

    before = job.saver.settle()
    path = job.saver.save(kind, job.state, job.model, job.optimizer, write_model=write_model, wait=wait)
    waited = f"training waited {time.perf_counter() - started:.1f} s"
    for committed in filter(None, (before, path)):
        run_log.say(f"saved {committed} ({waited})")


def finish(job: Job, run_log: RunLog) -> None:
    """The last checkpoint, which is always BOTH, and its model in the run directory itself."""
    save(job, "BOTH", run_log, wait=True)
    publish(job.run_dir / f"global_step_{job.state.step}" / MODEL_DIR, job.run_dir)
    write_facts(job, exported_step=job.state.step)
    run_log.say(f"the model is in {job.run_dir}: AutoModelForCausalLM.from_pretrained({str(job.run_dir)!r})")
