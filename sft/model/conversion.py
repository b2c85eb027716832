"""Which tensors of a model directory become which weights of the model, and the way back.

For most models one tensor is one weight, under the same name or under another (an old name, a missing prefix). For
some, transformers makes a weight of many tensors (experts are stored one by one and kept fused) or several of one.
Its own code says how, in both directions; this module asks it on the meta device, where nothing is read or computed,
and keeps what it learned as groups. A model is read and written group by group, so that nobody holds all of it.

    conversion_of(model, stored).groups     stored tensors  --convert-->  weights  --revert-->  stored tensors
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from sft.model.names import aliases, named_weights, stored_name
from sft.model.quantised import as_whole, is_packed
from sft.parallel.shards import StoredTensors

MAX_NAMES_SHOWN = 8


def remember_conversions(model: PreTrainedModel) -> None:
    """Ask transformers how it converts the weights of `model`, and note it as model.conversions.

    To be called before the model is sharded: fully_shard gives the model a class of its own, which transformers takes
    for foreign code whose weights are not converted.
    """
    vars(model)["conversions"] = get_model_conversion_mapping(model)


@dataclass(frozen=True)
class Group:
    """Tensors of the files and the weights that they become, all of them together."""

    stored: tuple[str, ...]
    weights: dict[str, tuple[int, ...]]  # by name in the model, with the shape that the files give them
    converter: WeightConverter | None = None  # None: one tensor is one weight
    patterns: tuple[str, ...] = ()  # of the converter, one for each stored tensor


@dataclass(frozen=True)
class Conversion:
    """All groups of a model directory, and what is left over on either side."""

    groups: list[Group]
    unread: list[str]  # tensors that transformers leaves unread, too: parts that its class does not have
    repeated: dict[str, str]  # second names of tied weights -> the stored name of the first
    problems: list[str]  # why this directory does not fit the model; empty if it does
    parts: _ModelParts

    def convert(self, group: Group, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Read the tensors of one group and return the weights that they become."""
        if group.converter is None:
            return {next(iter(group.weights)): read(group.stored[0])}
        return _convert(group.converter, next(iter(group.weights)), group.stored, group.patterns, read, self.parts)

    def revert(self, group: Group, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors that a model directory stores for the weights of one group."""
        if group.converter is None:
            return {group.stored[0]: weights[next(iter(group.weights))]}
        reverted = _unlisted(revert_weight_conversion(self.parts, dict(weights)))  # pyright: ignore[reportArgumentType]
        return {self._as_stored(name, group): tensor for name, tensor in reverted.items()}

    def _as_stored(self, name: str, group: Group) -> str:
        """Return the name with or without the model's prefix, as the file of this group has it."""
        prefix = f"{self.parts.base_model_prefix}."
        spellings = (name, name.removeprefix(prefix), f"{prefix}{name}")
        return next((spelling for spelling in spellings if spelling in group.stored), name)


def conversion_of(
    model: PreTrainedModel, stored: StoredTensors, *, grown: Iterable[str] = (), inverse: bool = True
) -> Conversion:
    """Plan how `stored` becomes the weights of `model`. Reads nothing but names and shapes.

    grown: weights that have more rows than the files. inverse: whether the way back must exist as well.
    """
    weights = named_weights(model)
    parts = _ModelParts(model, weights)
    groups, unexpected = _group(stored, parts)
    other_names = aliases(model)
    firsts = {name: group for group in groups for name in group.weights}
    kept, repeated = [], {}
    for group in groups:
        ((weight, shape), *others) = group.weights.items()
        first = other_names.get(weight)
        if first is None or others or group.converter is not None:
            kept.append(group)
        elif first in firsts:
            repeated[group.stored[0]] = firsts[first].stored[0]
        else:  # a tied weight that the files have under its second name alone
            kept.append(Group(group.stored, {first: shape}))
    unread = [name for name, renamed in unexpected.items() if _is_ignored(model, renamed)]
    conversion = Conversion(kept, unread, repeated, [], parts)
    filled = {name for group in kept for name in group.weights}
    missing = [name for name in weights if name not in filled and not _need_not_be_stored(model, name)]
    surplus = [name for name in unexpected if name not in unread]
    told = conversion.problems
    told += shortened("missing", missing)
    told += shortened("unexpected", surplus)
    told += shortened("wrong shape", _misshaped(conversion, set(grown)))
    if inverse and not told:
        told += shortened("cannot be written as they were read", _not_reverted(conversion, stored))
    return conversion


def _group(stored: StoredTensors, parts: _ModelParts) -> tuple[list[Group], dict[str, str]]:
    """Return (the groups; stored tensors that become no weight, with the name that they would have in the model).

    The same decisions, in the same order, as transformers' convert_and_load_state_dict_in_model.
    """
    renamings = [each for each in parts.conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in parts.conversions if isinstance(each, WeightConverter)]
    of_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    prefix, known = parts.base_model_prefix, parts.known
    found: dict[str, list[tuple[str, str | None]]] = {}
    unexpected = {}
    for name in sorted(stored.parts, key=dot_natural_key):
        weight, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if weight not in known and name in known:
            weight, pattern = rename_source_key(name, [], [], prefix, known)
        if weight in known:
            found.setdefault(weight, []).append((name, pattern))
        else:
            unexpected[name] = weight
    parts.keep_used_conversions()
    groups = []
    for weight, sources in found.items():
        names, patterns = tuple(name for name, _ in sources), tuple(p for _, p in sources if p is not None)
        if patterns:
            converter = of_pattern[patterns[0]]
            made = _convert(converter, weight, names, patterns, partial(_empty, stored), parts)
            groups.append(Group(names, {name: tuple(each.shape) for name, each in made.items()}, converter, patterns))
        else:
            groups += [Group((name,), {weight: stored.shape(name)}) for name in names]
    return groups, unexpected


def _misshaped(conversion: Conversion, grown: set[str]) -> list[str]:
    wrong = []
    for name, found in (item for group in conversion.groups for item in group.weights.items()):
        wanted = tuple(conversion.parts.known[name].shape) if name in conversion.parts.known else None
        if wanted is None or found[name in grown :] != wanted[name in grown :]:
            wrong.append(
                f"{name}: the file has {list(found)}, the model {list(wanted) if wanted else 'no such weight'}"
            )
    return wrong


def _not_reverted(conversion: Conversion, stored: StoredTensors) -> list[str]:
    """Return the names that are no longer there, or of another shape, where a group is converted and reverted again."""
    wrong = []
    for group in conversion.groups:
        if group.converter is None:
            continue
        made = conversion.revert(group, conversion.convert(group, partial(_empty, stored)))
        shapes = {name: tuple(tensor.shape) for name, tensor in made.items()}
        expected = {name: stored.shape(name) for name in group.stored}
        wrong += [name for name in sorted(shapes.keys() | expected) if shapes.get(name) != expected.get(name)]
    return wrong


def _empty(stored: StoredTensors, name: str) -> torch.Tensor:
    return torch.empty(stored.shape(name), device="meta", dtype=torch.float32)


def _convert(
    converter: WeightConverter,
    weight: str,
    names: Sequence[str],
    patterns: Sequence[str],
    read: Callable[[str], torch.Tensor],
    parts: _ModelParts,
) -> dict[str, torch.Tensor]:
    converter = deepcopy(converter)  # which collects what it is given
    for name, pattern in zip(names, patterns, strict=True):
        converter.add_tensor(weight, name, pattern, read(name))  # pyright: ignore[reportArgumentType]
    return _unlisted(converter.convert(weight, model=parts, config=parts.config))


def _unlisted(made: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}


def _is_ignored(model: PreTrainedModel, name: str) -> bool:
    """Return True where transformers, too, ignores a tensor of this name that the model has no place for."""
    patterns = list(model._keys_to_ignore_on_load_unexpected or ())
    buffers = [buffer for buffer, _ in model.named_buffers()]
    if any(buffer.endswith("rotary_emb.inv_freq") for buffer in buffers):
        patterns.append(r"rotary_emb\.inv_freq")
    if any(buffer.endswith("position_ids") for buffer in buffers):
        patterns.append(r"(^|\.)position_ids$")
    return any(re.search(pattern, name) for pattern in patterns)


def _need_not_be_stored(model: PreTrainedModel, name: str) -> bool:
    """Return True for a buffer that the model computes where the files do not have it."""
    patterns = model._keys_to_ignore_on_load_missing or ()
    buffers = {stored_name(buffer) for buffer, _ in model.named_buffers()}
    return name in buffers and any(re.search(pattern, name) for pattern in patterns)


def shortened(what: str, names: Sequence[str]) -> list[str]:
    """Return one line that says what is the matter with `names`, the first of them; none where there are no names."""
    if not names:
        return []
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return [f"{what}: {', '.join(names[:MAX_NAMES_SHOWN])}{more}"]


@dataclass
class _ModelParts:
    """What transformers' converters ask of a model: sharded, adapted or not, the names are those of its class."""

    model: PreTrainedModel
    weights: dict[str, torch.Tensor]
    known: dict[str, torch.Tensor] = field(init=False)  # every name, a tied weight under each of its names
    conversions: list[WeightTransform] = field(init=False)

    def __post_init__(self) -> None:
        named = {stored_name(name): tensor for name, tensor in self.model.state_dict().items()}
        self.known = {name: tensor for name, tensor in named.items() if name is not None}
        self.known |= {name: as_whole(weight) for name, weight in self.weights.items() if is_packed(weight)}
        self.conversions = deepcopy(vars(self.model)["conversions"])

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    def base_model_prefix(self) -> str:
        return self.model.base_model_prefix

    @property
    def _weight_conversions(self) -> list[WeightTransform]:
        return self.conversions  # where revert_weight_conversion looks for them

    def keep_used_conversions(self) -> None:
        """Forget those that no stored name needed: they must not rename anything on the way back either."""
        self.conversions = [each for each in self.conversions if each.was_used()]

    def get_parameter(self, name: str) -> torch.Tensor:
        return self.known[name]
