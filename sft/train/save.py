"""Save when it is due: checkpoints on the way, the model at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import Any

from sft import checkpoint
from sft.checkpoint import MODEL_DIR, Kind
from sft.errors import InputError
from sft.files import RunDir
from sft.model.write.directory import Speech, export, publish
from sft.parallel.world import log, on_main_rank
from sft.track.card import CARD, CURVE, is_untouched
from sft.track.facts import RUN_JSON
from sft.track.run_log import RunLog
from sft.train.build import Job
from sft.train.report import write_facts
from sft.train.requests import Requests
from sft.train.result import Start, summarise, write_card


def save_if_due(job: Job, requests: Requests, run_log: RunLog) -> None:
    """Begin the checkpoint that is due or asked for after this step; or commit the one that all ranks have written."""
    if kind := kind_due(job, requests):
        save(job, kind, run_log, wait=requests.stop)
    elif job.saver.has_begun and requests.may_settle:
        run_log.say(f"saved {job.saver.settle()}")


def kind_due(job: Job, requests: Requests) -> Kind | None:
    """Return the kind of checkpoint that this step ends with: by interval, on demand, as the best, as a stop."""
    trainer, step = job.config.trainer, job.state.step
    if job.is_over and not requests.stop:
        return None  # finish saves BOTH
    state_interval, model_interval = job.steps_of(trainer.save_freq), job.steps_of(trainer.save_hf_freq)
    state = requests.stop or (state_interval > 0 and step % state_interval == 0)
    model = is_best(job) or (model_interval > 0 and step % model_interval == 0)
    asked = {requests.save} | ({"STATE"} if state else set()) | ({"SAMPLER"} if model else set())
    if "BOTH" in asked or {"STATE", "SAMPLER"} <= asked:
        return "BOTH"
    return "STATE" if "STATE" in asked else "SAMPLER" if "SAMPLER" in asked else None


def is_best(job: Job) -> bool:
    """Return True if trainer.save_best wants the model of this step: its validation was the best so far."""
    return job.config.trainer.save_best and job.state.course.best_step == job.state.step


def save_if_best(job: Job, run_log: RunLog) -> None:
    """Save the model if it is the best, after a validation that was made up for when the run went on."""
    if is_best(job) and not job.is_over:
        save(job, "SAMPLER", run_log, wait=True)


def save(job: Job, kind: Kind, run_log: RunLog, *, wait: bool) -> None:
    """Begin a checkpoint of this step, having finished the one before; says what was committed.

    Where the model cannot be written, what was trained is saved without it, and then InputError raised.
    """
    started = time.perf_counter()
    before = job.saver.settle()
    run_log.sync()
    try:
        path = _save(job, kind, wait=wait)
    except InputError as error:
        if kind == "STATE":
            raise
        path = _save(job, "STATE", wait=True)
        raise InputError(
            f"{error}.\nWhat was trained is safe in {path}: mend that and give the same command again, or write the "
            f"model elsewhere: python -m sft.export {path} --out DIR"
        ) from error
    waited = f"training waited {time.perf_counter() - started:.1f} s"
    for committed in filter(None, (before, path)):
        run_log.say(f"saved {committed} ({waited})")
    if kind != "STATE" and job.hub:
        job.hub.push(model_of(job, job.state.step), job.state.step)
    if is_best(job) and kind != "STATE":
        checkpoint.mark_best(job.run_dir, job.state.step)


def _save(job: Job, kind: Kind, *, wait: bool) -> Path | None:
    speech = Speech(
        tokenizer=job.inputs.tokenizer,
        stop_token_ids=job.stop_token_ids,
        chat_template=job.inputs.chat_template,
        new_tokens=job.inputs.new_tokens,
        template_options=job.config.data.apply_chat_template_kwargs,
        trust_remote_code=job.config.model.trust_remote_code,
    )

    def write_model(target: Path) -> None:
        export(job.model, job.inputs.source, target, speech=speech, is_main=job.world.is_main)
        write_card(job, target)

    return job.saver.save(kind, job.state, job.model, job.optimizer, write_model=write_model, wait=wait)


def model_of(job: Job, step: int) -> Path:
    """Return the Hugging Face directory inside the checkpoint of `step`."""
    return RunDir(job.run_dir).checkpoint(step) / MODEL_DIR


def finish(job: Job, run_log: RunLog, start: Start) -> None:
    """Write the last checkpoint, always BOTH, and publish its model (or the best one) in the run directory."""
    save(job, "BOTH", run_log, wait=True)
    step = step_to_publish(job, run_log.warn)
    if job.hub and step != job.state.step:
        job.hub.push(model_of(job, step), step)
    on_main_rank(f"looking at {job.run_dir}", lambda: keep_own_readme(job.run_dir))
    publish(model_of(job, step), job.run_dir)
    ended = "finished" if job.state.step >= job.total_steps else "early stop"
    summarise(job, start, run_log, ended=ended, published_step=step)
    write_facts(job, exported_step=job.state.step, published_step=step)  # last: by run.json a run is finished


def is_complete(job: Job) -> bool:
    """Return True if the run is over and its directory holds the model that is asked for, as run.json says.

    Every rank calls it; rank 0 looks, for it wrote the file.
    """

    def read() -> dict[str, Any]:
        try:
            return json.loads((job.run_dir / RUN_JSON).read_text())
        except (OSError, ValueError):
            return {}

    facts = on_main_rank(f"looking whether {job.run_dir} is finished", read)
    if not job.is_over or facts.get("exported_step") != job.state.step:
        return False
    return facts.get("published_step") == step_to_publish(job, log.warning)


def publish_what_differs(job: Job) -> None:
    """Compare the model in the directory of a run that is complete with its checkpoint; publish it again if it differs.

    Every rank calls it. A disk may have lost, after the run, what it had said was written.
    """
    step = step_to_publish(job, log.warning)
    chosen = RunDir(job.run_dir).checkpoint(step)
    own = (CARD, CURVE)  # people write in the one, and the other is drawn again after the end
    problems = checkpoint.differs_from_model(job.run_dir, chosen, but=own, world=job.world)
    if not problems:
        return
    if damage := checkpoint.verify(chosen, world=job.world):
        raise InputError(
            f"the model in {job.run_dir} is not what was published ({'; '.join(problems)}), and {chosen} cannot mend "
            f"it: {'; '.join(damage)}. Take another checkpoint: python -m sft.export {job.run_dir} --out DIR"
        )
    log.warning("the model in %s is not what was published (%s): published again", job.run_dir, "; ".join(problems))
    publish(model_of(job, step), job.run_dir, keep=own)


def step_to_publish(job: Job, warn: Callable[[str], None]) -> int:
    """Return the step whose model the run ends with: the last one, or with trainer.load_best_at_end the best."""
    last, best = job.state.step, job.state.course.best_step
    if not job.config.trainer.load_best_at_end or best < 1 or best == last:
        return last
    chosen = RunDir(job.run_dir).checkpoint(best)
    problems = checkpoint.verify(chosen, world=job.world)
    if not problems and not checkpoint.has_model(checkpoint.read_manifest(chosen)):
        problems = ["it holds no model"]
    if problems:
        warn(f"{chosen}, the best, is not usable ({'; '.join(problems)}): the run ends with its last model")
    return last if problems else best


def keep_own_readme(run_dir: Path) -> None:
    """Keep a README.md in which somebody has written, be it a card of ours, under another name."""
    readme = run_dir / CARD
    if readme.is_file() and not is_untouched(readme.read_text(errors="replace")):
        names = chain(["README.own.md"], (f"README.own.{n}.md" for n in count(2)))
        readme.rename(next(path for name in names if not (path := run_dir / name).exists()))
