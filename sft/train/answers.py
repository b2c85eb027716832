"""Let the model answer while it trains: a few prompts of the validation rows, greedily, every generate_freq steps.

The sharded model itself speaks, by ordinary forward passes. No cache of keys and values: every new token is a forward
of all tokens so far, so that n tokens cost about n forwards of the growing rows. The ranks share the prompts, and after
every forward one sum tells all of them each new token. So all know the same answers at any time, all decide alike when
to stop, and none ever waits for a forward that another does not make.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch

from sft.data.order.collate import collate
from sft.data.prompts import Prompt, read_prompts, those_that_fit
from sft.model.load import positions_of
from sft.parallel.ulysses import split_tokens
from sft.parallel.world import ALL_RANKS, entering, on_main_rank, sum_over
from sft.track.run_log import RunLog
from sft.train.build import Job
from sft.train.forecast_memory import explaining_memory
from sft.train.requests import Listener
from sft.types import Batch, Sample

ROWS_PASSED_OVER = 100
"""Rows without a question or an answer, or with a prompt that is too long, before no more are looked at."""


def choose_prompts(job: Job, run_log: RunLog) -> list[Prompt]:
    """Choose the first prompts of the validation rows (without any: of the training rows); none if this is off."""
    data, trainer = job.config.data, job.config.trainer
    if trainer.generate_freq <= 0:
        return []
    files = data.val_files or data.train_files

    def read() -> tuple[list[Prompt], list[str]]:
        bad: list[str] = []
        rows = trainer.generate_samples + ROWS_PASSED_OVER
        prompts = read_prompts(data, files, job.inputs.tokenizer, bad, max_rows=rows, seed=trainer.seed)
        return list(islice(those_that_fit(prompts, data.max_length, bad), trainer.generate_samples)), bad

    prompts, bad = on_main_rank("reading prompts for samples", read)
    for problem in bad[:1]:
        run_log.warn(f"trainer.generate_freq: {len(bad)} rows give no prompt, the first because: {problem}")
    if len(prompts) < trainer.generate_samples:
        run_log.warn(
            f"trainer.generate_samples={trainer.generate_samples}: the rows give {len(prompts)} prompts, which are used"
        )
    return prompts


def sample_if_due(job: Job, prompts: Sequence[Prompt], run_log: RunLog, listener: Listener) -> None:
    """Write what the model answers after this step into samples.jsonl and the log, if it is due."""
    trainer, step = job.config.trainer, job.state.step
    if not prompts or (step % trainer.generate_freq and not job.is_over):
        return
    entering(f"samples after step {step}")
    with explaining_memory(job.memory, f"samples after step {step}"):
        answers = greedy(job, [prompt.input_ids for prompt in prompts], trainer.generate_max_new_tokens, listener)
    if answers is None:  # the run was asked to stop
        return
    told = [job.inputs.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    run_log.samples(
        step,
        [
            {"row": prompt.where, "prompt": prompt.text, "answer": answer, "expected": prompt.expected}
            for prompt, answer in zip(prompts, told, strict=True)
        ],
    )


@torch.no_grad()
def greedy(
    job: Job, prompts: Sequence[Sequence[int]], max_new_tokens: int, listener: Listener | None = None
) -> list[list[int]] | None:
    """Answer every prompt greedily: token ids without the stop; None if the listener heard a request to stop.

    Every rank calls it with the same prompts and gets the same answers. Nothing random is drawn, and the model is left
    in its mode: training goes on as if nothing had been.
    """
    was_training = job.model.training
    job.model.eval()
    rows, stops = [list(prompt) for prompt in prompts], set(job.stop_token_ids)
    ends = [min(len(row) + max_new_tokens, positions_of(job.model)) for row in rows]
    speaking = [n for n, row in enumerate(rows) if len(row) < ends[n]]
    stopped = False
    while speaking and not stopped:
        mine = speaking[job.mesh.dp_rank :: job.mesh.dp_size]
        found = np.zeros(len(rows))
        found[mine] = _next_tokens(job, [rows[n] for n in mine])
        tokens = sum_over(ALL_RANKS, *found)
        for n in speaking:
            rows[n].append(int(tokens[n]))
        speaking = [n for n in speaking if rows[n][-1] not in stops and len(rows[n]) < ends[n]]
        stopped = listener is not None and listener.must_stop()
    job.model.train(was_training)
    if stopped:
        return None
    answers = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    return [answer[:-1] if answer and answer[-1] in stops else answer for answer in answers]


def _next_tokens(job: Job, rows: list[list[int]]) -> np.ndarray:
    """Return the likeliest next token of every row, int64 [S]; 0 where another rank of the sp group holds its last one.

    One forward of the model, also where this rank has no row: it owes the others its part of the weights.
    """
    samples = [Sample(np.array(row, np.int32), np.zeros(len(row), np.float32)) for row in rows]
    whole = collate(samples, packed=job.train.packed, pad_id=job.train.pad_id)
    batch = split_tokens(whole, part=job.mesh.sp_rank, parts=job.mesh.sp_size)
    lengths = np.array([len(row) for row in rows], np.int64)
    width = batch.input_ids.shape[1]
    places = np.cumsum(lengths) - 1 - job.mesh.sp_rank * width if job.train.packed else lengths - 1
    here = (places >= 0) & (places < width)
    columns = np.unique(places[here])
    logits = _logits(job, batch, columns)  # [R, columns, V]
    tokens = np.zeros(len(rows), np.int64)
    if here.any():
        of_row = np.zeros(len(rows), np.int64) if job.train.packed else np.arange(len(rows))
        best = logits.argmax(-1).cpu().numpy()
        tokens[here] = best[of_row[here], np.searchsorted(columns, places[here])]
    return tokens


def _logits(job: Job, batch: Batch, columns: np.ndarray) -> torch.Tensor:
    device = job.world.device
    # The LM head runs on every rank, be it for one token that nobody asked for: its weights are gathered as well.
    keep = torch.from_numpy(columns if len(columns) else np.zeros(1, np.int64)).to(device)
    batch = batch.to(device)
    return job.model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        logits_to_keep=keep,
        use_cache=False,
        **batch.boundaries,
    ).logits
