"""Tell how a run ended: result.json for programs, the last lines for people, and the card of its model."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sft.config.door import changed_keys
from sft.config.mappings import dotted
from sft.config.secrets import without_secrets
from sft.config.visible import code_span
from sft.files import replace_file
from sft.model.text_part import model_class
from sft.parallel.world import log, max_over_all_ranks, on_main_rank
from sft.track.card import CARD, CURVE, CardFacts, model_card
from sft.track.curve import draw as draw_curve
from sft.track.facts import facts_of_process
from sft.track.metrics import peak_memory_gb
from sft.track.run_log import METRICS, RunLog
from sft.train.build import Job
from sft.train.report import data_facts

RESULT = "result.json"
ON_THE_CARD = ("data.", "model.", "optim.", "trainer.seed", "trainer.total_", "use_remove", "ulysses")
NOT_ON_THE_CARD = ("cache_dir", "num_workers", "_files", "mixture", "_key", "_keys", "chat_template")


@dataclass(frozen=True)
class Start:
    """Where this process took over, to tell what it did itself."""

    seconds: float
    step: int
    tokens: int

    @classmethod
    def of(cls, job: Job) -> Start:
        return cls(time.perf_counter(), job.state.step, job.state.tokens_seen)


def summarise(job: Job, start: Start, run_log: RunLog, *, ended: str, published_step: int | None = None) -> None:
    """Write result.json and say the same in a few lines. A collective.

    ended: finished, early stop or stopped. published_step: whose model is in the run directory; None: no model is.
    """
    (peak,) = max_over_all_ranks(peak_memory_gb())
    result = result_of(job, start, ended, peak, published_step)
    content = json.dumps(without_secrets(result), indent=2, ensure_ascii=False).encode() + b"\n"
    on_main_rank(f"writing {job.run_dir / RESULT}", lambda: replace_file(job.run_dir / RESULT, content))
    for line in lines_of(result):
        run_log.say(line)


def result_of(job: Job, start: Start, ended: str, peak_gb: float, published_step: int | None) -> dict[str, Any]:
    """Return the content of result.json: how the run ended, its losses, speed, peak memory, published step."""
    state, course = job.state, job.state.course
    seconds = time.perf_counter() - start.seconds
    first, last = losses(job)
    return {
        "ended": ended,
        "steps": state.step,
        "total_steps": job.total_steps,
        "epochs": state.samples_seen / len(job.train.mixture),
        "samples": state.samples_seen,
        "tokens": state.tokens_seen,
        "skipped_steps": state.skipped_total,
        "train_loss": {"first": first, "last": last},
        "val": course.last_val,
        "best": {
            "metric": course.metric,
            "value": course.best_value,
            "step": course.best_step,
        }
        if course.best_value is not None
        else None,
        "warnings": list(course.warned.values()),
        "resumed_at_step": start.step,
        "duration_s": round(seconds, 1),  # of this process, as is the rate
        "tokens_per_sec": round((state.tokens_seen - start.tokens) / seconds, 1),
        "peak_memory_gb": round(peak_gb, 3),
        "output_dir": str(job.run_dir),
        "opened_by": opened_by(job),
        "published_step": published_step,
    }


def losses(job: Job) -> tuple[float | None, float | None]:
    """Return the mean training loss of the first and last twentieth of the run; of single steps in a short one."""
    course = job.state.course
    if len(course.stretches) < 2:
        return course.first_loss, course.last_loss
    return course.stretches[0], course.stretches[-1]


def opened_by(job: Job) -> str:
    """Return the name of transformers' auto class that opens the model: another one where it sees as well as reads."""
    return model_class(job.model.config).__name__


def lines_of(result: dict[str, Any]) -> list[str]:
    """Write a result in a few lines for people."""
    how = {"finished": "finished", "early stop": "ended by early stopping", "stopped": "stopped"}[result["ended"]]
    told = [
        f"{how} at step {result['steps']:,} of {result['total_steps']:,}: {result['epochs']:.2f} epochs, "
        f"{result['samples']:,} samples, {result['tokens']:,} tokens; here {_duration(result['duration_s'])}, "
        f"{result['tokens_per_sec']:,.0f} tokens/s, {result['peak_memory_gb']:.2f} GB at most"
    ]
    losses = []
    if result["train_loss"]["first"] is not None:
        losses.append("train loss {first:.4f} -> {last:.4f}".format(**result["train_loss"]))
    if "val/loss" in result["val"]:
        losses.append(f"validation loss {result['val']['val/loss']:.4f}")
    if result["best"] is not None:
        losses.append("best {metric} {value:.4f} at step {step}".format(**result["best"]))
    told += ["; ".join(losses)] * bool(losses)
    told += [f"warned of: {warning}" for warning in result["warnings"]]
    output_dir, published = result["output_dir"], result["published_step"]
    if published is not None:
        of = "" if published == result["steps"] else f" of step {published}, the best,"
        told.append(f"the model{of} is in {output_dir}: {result['opened_by']}.from_pretrained({output_dir!r})")
    return told


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def write_card(job: Job, model_dir: Path) -> None:
    """Write README.md, and the loss curve as it is now, beside the model. Every rank calls it, rank 0 writes."""

    def write() -> None:
        try:
            draw_curve(job.run_dir / METRICS, model_dir / CURVE, title=job.config.trainer.experiment_name)
        except Exception as error:  # a card without a picture is a card
            log.warning("the loss curve could not be drawn: %r", error)
        (model_dir / CARD).write_text(model_card(card_facts(job, (model_dir / CURVE).is_file())))

    on_main_rank(f"writing the card of {model_dir}", write)


def card_facts(job: Job, has_curve: bool) -> CardFacts:
    """Collect what the card of the model says as it stands now."""
    config, state = job.config, job.state
    data, changed = config.data, changed_keys(config)
    files = [source.path for source in data.mixture] if data.mixture else list(data.train_files or ())
    process, name = facts_of_process(), job.run_dir.resolve().name
    return CardFacts(
        name=config.trainer.hub_model_id or name,
        opens_as=config.trainer.hub_model_id or f"path/to/{name}",
        opened_by=opened_by(job),
        base_model=config.model.partial_pretrain,
        datasets=files,
        data=data_facts(job),
        template=template_name(data.chat_template),
        template_hash=job.fingerprint["template"],
        step=state.step,
        total_steps=job.total_steps,
        epochs=state.samples_seen / len(job.train.mixture),
        samples=state.samples_seen,
        tokens=state.tokens_seen,
        train_loss=losses(job),
        metrics=state.course.last_val,
        settings={key: value for key, value in settings_of(asdict(config)).items() if key in changed},
        versions=process["versions"],
        command=command_of(process["command"], os.environ.get("LOCAL_WORLD_SIZE")),
        world_size=job.world.size,
        has_curve=has_curve,
        has_adapter=config.model.lora_rank > 0,
    )


def template_name(given: str | None) -> str:
    """Name the template of data.chat_template: its name or file, not its text."""
    if given is None:
        return "the tokenizer's own, or ChatML where it has none"
    return "given as text" if "{" in given else code_span(Path(given).name)


def command_of(argv: list[str], ranks_per_node: str | None) -> list[str]:
    """Return the command as a person types it."""
    if argv and Path(argv[0]).name == "sft-train" and not ranks_per_node:
        return ["sft-train", *argv[1:]]
    if not argv or Path(argv[0]).name != "fsdp_sft_trainer.py":
        return ["python", *argv]
    launcher = ["torchrun", f"--nproc_per_node={ranks_per_node}"] if ranks_per_node else ["python"]
    return [*launcher, "-m", "sft.fsdp_sft_trainer", *argv[1:]]


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the model, with dotted keys; without paths of this machine."""
    return {
        key: Path(value).name if isinstance(value, str) and value.startswith("/") else value
        for key, value in dotted(without_secrets(config)).items()
        if key.startswith(ON_THE_CARD) and not key.endswith(NOT_ON_THE_CARD) and value not in (None, {}, ())
    }
