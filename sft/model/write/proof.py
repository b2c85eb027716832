"""Prove before the first step that a trained model can be written: with the names, shapes and dtypes of its source.

A run that trains for a day and then cannot write its model is the worst failure; so the plan of the export is made at
the start, from names and shapes alone, and held against the source's own files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from sft.errors import InputError
from sft.model.conversion import shortened
from sft.model.dequantise import stored_weights
from sft.model.names import has_adapters
from sft.model.pretrained import load_config
from sft.model.text_part import model_class
from sft.model.vocabulary import vocabulary_weights
from sft.model.write.growing_file import DTYPES
from sft.model.write.weights import adapters_of, plan_of
from sft.parallel.fsdp import class_name
from sft.parallel.shards import StoredTensors
from sft.parallel.world import log


def prove_export(model: PreTrainedModel, source: Path) -> None:
    """Raise InputError unless the model that will be written has the tensors of `source`, each with shape and dtype.

    model: a skeleton, with its adapters inside. Reads headers, and the numbers of a tied weight that is there twice.
    """
    stored = stored_weights(source)
    planned, conversion = plan_of(model, stored, source, gather=_nothing_yet, dtype=None)
    will_be = {name: about for plan in planned for name, about in plan.tensors.items()}
    expected = {name: (stored.shape(name), DTYPES[stored.dtypes[name]]) for name in stored.parts}
    vocabulary = {id(weight) for weight in vocabulary_weights(model, conversion.parts.weights).values()}
    may_grow = {
        group.stored[0]
        for group in conversion.groups
        if any(id(conversion.parts.weights.get(name)) in vocabulary for name in group.weights)
    }
    changed = [
        f"{name} (it would be {will_be[name]}, and is {expected[name]})"
        for name in sorted(will_be.keys() & expected)
        if will_be[name] != expected[name] and name not in may_grow
    ]
    problems = [
        *shortened("left out", sorted(expected.keys() - will_be.keys() - conversion.repeated.keys())),
        *shortened("invented", sorted(will_be.keys() - expected.keys())),
        *shortened("changed", changed),
    ]
    whole_numbers = [
        name
        for group in conversion.groups
        for name in group.stored
        if not expected[name][1].is_floating_point
        and conversion.parts.weights[next(iter(group.weights))].is_floating_point()
    ]
    problems += shortened("rounded to whole numbers, in which the files have them", whole_numbers)
    if has_adapters(model):
        merged = {name for group in conversion.groups for name in group.weights}
        problems += shortened("adapted, but not written", sorted(adapters_of(model).keys() - merged))
    if problems:
        raise InputError(
            f"{class_name(model)} of {source} could be trained, but not written as it was read; nothing is trained:"
            "\n  " + "\n  ".join(problems)
        )
    if conversion.unread:
        log.info(
            "%s has no place for %d tensors of %s; they are copied into the trained model as they are: %s.",
            class_name(model),
            len(conversion.unread),
            source,
            ", ".join(shortened("", conversion.unread)).removeprefix(": "),
        )
    for second, first in conversion.repeated.items():
        if not _equal(stored, first, second):
            raise InputError(
                f"config.json of {source} says that {second} and {first} are one weight (tie_word_embeddings), but "
                f"the files hold two different ones, and one would be lost; if the model is not tied, write "
                f"tie_word_embeddings=false there, and otherwise save it again without {second}."
            )


def prove_generation_settings(source: Path) -> None:
    """Raise InputError for a generation_config.json with which transformers would not open the written model."""
    file = source / "generation_config.json"
    if not file.is_file():
        return
    try:
        if not isinstance(json.loads(file.read_text()), dict):
            raise ValueError("it is no JSON object")
        GenerationConfig.from_pretrained(source)
    except Exception as error:  # transformers checks values in many ways
        raise InputError(
            f"{file} would keep the trained model from being opened ({error}); mend it, or take it out."
        ) from error


def loading_report(directory: Path, *, trust_remote_code: bool) -> list[str]:
    """Return what transformers itself finds wrong with the weights of `directory`, one line for each kind of wrong."""
    with _without_a_bar():
        opened = model_class(load_config(directory, trust_remote_code=trust_remote_code)).from_pretrained(
            directory, device_map="meta", trust_remote_code=trust_remote_code, output_loading_info=True
        )
    _, report = cast(tuple[PreTrainedModel, dict[str, Any]], opened)
    return [line for kind, names in report.items() for line in shortened(kind, sorted(map(str, names)))]


@contextmanager
def _without_a_bar() -> Iterator[None]:
    """Keep transformers from showing how far it has loaded: nothing is loaded here."""
    showed = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if showed:
            logging.enable_progress_bar()


def _nothing_yet(name: str, dtype: torch.dtype) -> torch.Tensor:
    raise AssertionError(f"{name} has no numbers yet")


def _equal(stored: StoredTensors, first: str, second: str) -> bool:
    return torch.equal(stored.read(first), stored.read(second))
