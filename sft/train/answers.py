"""Let the model answer while it trains: prompts of the validation rows, greedily, shown or graded.

The sharded model itself speaks, with its cache of keys and values. Each rank answers its share of the prompts; as every
forward of a sharded model needs all ranks, they make their forwards together, and a rank that has said everything keeps
the others company. Attention is transformers' own meanwhile: the kernels of training know no cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import GenerationConfig, PreTrainedModel

from sft.data.prompts import Prompt, read_prompts, those_that_fit
from sft.errors import InputError
from sft.model.answer import Sampling, answer
from sft.model.load import positions_of
from sft.parallel.world import entering, max_over_all_ranks, on_every_rank, on_main_rank
from sft.track.run_log import RunLog
from sft.train.build import Job
from sft.train.forecast_memory import explaining_memory
from sft.train.grade import Grader, grader_of
from sft.train.requests import Listener

ROWS_PASSED_OVER = 100
"""Rows without a question or an answer, or with a prompt that is too long, before no more are looked at."""

SHOWN = 4
"""Graded answers that a validation shows in the log; samples.jsonl has all of them."""

OF_TRANSFORMERS = ("sdpa", "eager")


@dataclass(frozen=True)
class Questions:
    """What the model is asked while it trains, and how its answers are graded (None: they are only shown)."""

    prompts: Sequence[Prompt]
    grader: Grader | None


def choose_questions(job: Job, run_log: RunLog) -> Questions:
    """Choose the first prompts of the validation rows (without any: of the training rows); none if this is off.

    Raises InputError for a metric that cannot grade, and where it finds nothing to grade.
    """
    data, trainer = job.config.data, job.config.trainer
    grader = grader_of(trainer.generate_metric) if trainer.generate_metric else None
    if trainer.generate_freq <= 0 and grader is None:
        return Questions((), None)
    files = data.val_files or data.train_files
    longest = min(data.max_length, positions_of(job.model) - 1)

    def read() -> tuple[list[Prompt], list[str]]:
        bad: list[str] = []
        rows = trainer.generate_samples + ROWS_PASSED_OVER
        prompts = read_prompts(data, files, job.inputs.tokenizer, bad, max_rows=rows, seed=trainer.seed)
        return list(islice(those_that_fit(prompts, longest, bad), trainer.generate_samples)), bad

    key = "trainer.generate_metric" if grader else "trainer.generate_freq"
    prompts, bad = on_main_rank("reading prompts for samples", read)
    for problem in bad[:1]:
        run_log.warn(f"{key}: {len(bad)} rows give no prompt, the first because: {problem}")
    if grader and not prompts:
        raise InputError(f"{key}={trainer.generate_metric}: no row of data.val_files asks for an answer; leave it out.")
    if len(prompts) < trainer.generate_samples:
        run_log.warn(
            f"trainer.generate_samples={trainer.generate_samples}: the rows give {len(prompts)} prompts, which are used"
        )
    return Questions(prompts, grader)


def sample_if_due(job: Job, questions: Questions, run_log: RunLog, listener: Listener) -> None:
    """Write what the model answers after this step into samples.jsonl and the log, if it is due."""
    trainer, step = job.config.trainer, job.state.step
    if trainer.generate_freq <= 0 or not questions.prompts or (step % trainer.generate_freq and not job.is_over):
        return
    if questions.grader and job.state.validated == step:  # graded, and written, a moment ago
        return
    if told := answer_all(job, questions.prompts, listener):  # None: the run was asked to stop
        run_log.samples(step, records_of(questions.prompts, told))


def grade_answers(job: Job, questions: Questions, run_log: RunLog, listener: Listener) -> dict[str, float] | None:
    """Measure trainer.generate_metric: the mean over the answers to all questions, and what it cost.

    None if the run was asked to stop. The answers and their scores go into samples.jsonl.
    """
    if questions.grader is None:
        return {}
    began, step, prompts = time.perf_counter(), job.state.step, questions.prompts
    told = answer_all(job, prompts, listener)
    if told is None:
        return None
    pairs = [(text, prompt.expected) for text, prompt in zip(told, prompts, strict=True)]
    grader = questions.grader
    scores = on_main_rank("grading", lambda: grader.scores(pairs))
    mean = sum(scores) / len(scores)
    name = f"val/{grader.name}"
    run_log.say(
        f"{name}={mean:.4f}: {len(scores):,} answers of at most {job.config.trainer.generate_max_new_tokens:,} tokens "
        f"in {time.perf_counter() - began:.1f} s"
    )
    records = records_of(prompts, told)
    graded = [record | {"score": score} for record, score in zip(records, scores, strict=True)]
    run_log.samples(step, graded, show=SHOWN)
    return {name: mean}


def records_of(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[dict[str, str]]:
    """Return the lines of samples.jsonl: which row asked what, what was answered, what was expected."""
    return [
        {"row": prompt.where, "prompt": prompt.text, "answer": text, "expected": prompt.expected}
        for prompt, text in zip(prompts, answers, strict=True)
    ]


def answer_all(job: Job, prompts: Sequence[Prompt], listener: Listener) -> list[str] | None:
    """Answer every prompt greedily, each rank its share; None if the run was asked to stop. Every rank calls it.

    All ranks get all answers. Nothing random is drawn, and the model is left as it was: training goes on as if nothing
    had been.
    """
    phase, world = f"answers after step {job.state.step}", job.world
    entering(phase)
    # By length, dealt in turn: every rank gets as much to say.
    mine = sorted(range(len(prompts)), key=lambda n: -len(prompts[n].input_ids))[world.rank :: world.size]
    sampling = Sampling(job.config.trainer.generate_max_new_tokens)
    with explaining_memory(job.memory, phase), speaking(job):
        together = _Together(job.model, listener)
        try:
            ids = [prompts[n].input_ids for n in mine]
            texts = answer(job.model, job.inputs.tokenizer, ids, sampling, device=world.device)
            together.keep_company(world.device)
        except _Stopped:
            return None
        finally:
            together.part()
    shares = on_every_rank(phase, lambda: list(zip(mine, texts, strict=True)))
    answers = dict(pair for share in shares for pair in share)
    return [answers[n] for n in range(len(prompts))]


@contextmanager
def speaking(job: Job) -> Iterator[None]:
    """Make the model ready to answer, and put back its mode, attention, generation settings and compiled layers."""
    model = job.model
    was_training, settings = model.training, model.generation_config
    implementation = model.config._attn_implementation
    own = implementation if implementation in OF_TRANSFORMERS else "sdpa" if model._supports_sdpa else "eager"
    configs = [config for config in _configs(model) if config._attn_implementation == implementation]
    model.eval()
    model.generation_config = GenerationConfig(eos_token_id=job.stop_token_ids or None)
    for config in configs:
        config._attn_implementation_internal = own
    try:
        # A compiled layer would be compiled again for every length.
        with torch.compiler.set_stance("force_eager") if job.config.model.compile else nullcontext():
            yield
    finally:
        for config in configs:
            config._attn_implementation_internal = implementation
        model.generation_config = settings
        model.train(was_training)


def _configs(model: PreTrainedModel) -> list:
    """Return every configuration that a part of the model reads, each once."""
    parts = (getattr(module, "config", None) for module in model.modules())
    return list({id(config): config for config in parts if hasattr(config, "_attn_implementation_internal")}.values())


class _Stopped(Exception):
    """The run was asked to stop while it answered; every rank raises it before the same forward."""


class _AllSaid(Exception):
    """No rank has anything left to say."""


class _Together:
    """Lets ranks that answer different prompts make every forward at the same time, as a sharded model needs it."""

    def __init__(self, model: PreTrainedModel, listener: Listener):
        self._model, self._listener, self._has_more = model, listener, True
        # Before FSDP's own hook, which begins to gather weights.
        self._hook = model.register_forward_pre_hook(self._before_forward, prepend=True)

    def _before_forward(self, *_: object) -> None:
        (somebody_has_more,) = max_over_all_ranks(self._has_more)
        if not somebody_has_more:
            raise _AllSaid
        if self._listener.must_stop():
            raise _Stopped

    @torch.no_grad()
    def keep_company(self, device: torch.device) -> None:
        """Make forwards of one token for nothing, until no rank has anything left to say."""
        self._has_more = False
        token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        try:
            while True:
                self._model(input_ids=token, use_cache=False)
        except _AllSaid:
            return

    def part(self) -> None:
        self._hook.remove()
