"""Read what a run needs before the ranks meet: the model's directory, its tokenizer, the samples."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sft.config import SftConfig
from sft.data.dataset import Dataset
from sft.errors import InputError
from sft.model.attention import Available, Choice, choose_attention
from sft.model.fits import refuse_misfit_samples
from sft.model.liger import refuse_without_liger
from sft.model.logits import refuse_loss_kernel
from sft.model.place import build_bare_model
from sft.model.pretrained import find_model, load_config
from sft.model.write.proof import prove_export, prove_generation_settings
from sft.parallel.ulysses import refuse_impossible_split
from sft.parallel.world import World, log, on_every_rank
from sft.train.head_start import HeadStart
from sft.train.reading import open_data, open_tokenizer


@dataclass(frozen=True)
class Inputs:
    """What a rank reads by itself, outside of any process group: no collective waits while rows are tokenised."""

    source: Path  # the model directory the weights come from
    attention: Choice  # the kernel that computes it
    model: PreTrainedModel  # its skeleton on the meta device, with LoRA's adapters inside
    grown: bool  # whether its vocabulary had to grow
    tokenizer: Any
    chat_template: str | None  # the template trained with, where it is not the tokenizer's own
    new_tokens: dict[str, int]  # special tokens that the tokenizer of the source does not have, with their ids
    train: Dataset
    val: Dataset | None


def read_inputs(config: SftConfig, world: World, head_start: HeadStart | None = None) -> Inputs:
    """Tokenizer and data. Raises InputError for a model that is not there, that cannot be built or could not be
    written in the end, for one whose attention cannot be computed as asked, and for rows that cannot be used.
    """
    if config.model.use_liger:
        refuse_without_liger(world.device)
    refuse_loss_kernel(config.model.loss_kernel, world.device)
    if config.model.external_lib:
        importlib.import_module(config.model.external_lib)
    source = find_model(config.model.partial_pretrain, config.model.revision)
    check_sharing_of_rows(config, source, ranks=world.size)
    attention = attention_of(config, source, Available.on(world.device))
    log.info("attention: %s", attention)
    tokenizer, chat_template, new_tokens = open_tokenizer(config, source)
    model, grown = build_bare_model(config, source, attention, tokens=max(new_tokens.values(), default=-1) + 1)
    prove_export(model, source)
    prove_generation_settings(source)
    if head_start:
        head_start.wait()
    train, val = open_data(config, tokenizer, world)
    refuse_misfit_samples(
        model,
        [dataset.samples for dataset in (train, val) if dataset is not None],
        vocabulary=tokenizer.get_vocab().values(),
        max_length=config.data.max_length,
    )
    return Inputs(source, attention, model, grown, tokenizer, chat_template, new_tokens, train, val)


def refuse_other_inputs(read: Mapping[str, str | None]) -> None:
    """Raise InputError, on every rank, unless all of them read the same. A collective over all ranks.

    read: fingerprints, by the knob that says what is read. Weights of two models would be mixed, each rank's own part
    of its own; and ranks with other rows would wait for each other, or count what was never computed.
    """
    of_ranks = on_every_rank("comparing what the ranks read", lambda: dict(read))
    others = {
        knob: [str(rank) for rank, theirs in enumerate(of_ranks) if theirs[knob] != of_ranks[0][knob]] for knob in read
    }
    if different := [f"{knob} (rank {', '.join(ranks)})" for knob, ranks in others.items() if ranks]:
        raise InputError(
            f"the ranks do not read what rank 0 reads: {'; '.join(different)}. Give every node the same files, best on "
            "a file system that all of them see; for a model of the hub, the same revision."
        )


def refuse_other_data(computed: float, planned: float) -> None:
    """Raise InputError where the ranks have read different data, as the loss weights of a step show.

    computed: Σ w of the step, summed over what all ranks computed. planned: Σ w of the step by this rank's own files
    """
    if not math.isclose(computed, planned, rel_tol=1e-9):
        raise InputError(
            f"the ranks read different data: the loss weights of a step are {planned:.6g} by this rank's files and "
            f"{computed:.6g} in what all ranks computed; give every node the same data files, or one data.cache_dir."
        )


def check_sharing_of_rows(config: SftConfig, source: Path, *, ranks: int) -> None:
    """Raise InputError where this model's rows cannot be shared by as many ranks as the configuration asks for."""
    architecture = load_config(
        source, trust_remote_code=config.model.trust_remote_code, dequantise=config.model.dequantise
    )
    refuse_impossible_split(architecture, config.ulysses_sequence_parallel_size, ranks=ranks)


def attention_of(config: SftConfig, source: Path, here: Available, *, wanted: str | None = None) -> Choice:
    """Choose the attention of the model in `source`: the configured one, or the one that is wanted.

    Raises InputError if it cannot be computed here.
    """
    return choose_attention(
        load_config(source, trust_remote_code=config.model.trust_remote_code, dequantise=config.model.dequantise),
        wanted=wanted or config.model.attn_implementation,
        packed=config.use_remove_padding,
        half=config.model.fsdp_config.compute_dtype == "bf16",
        here=here,
    )
