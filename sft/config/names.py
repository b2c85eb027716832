"""Names that are not in the schema and still mean something: aliases, and keys of other trainers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from sft.config.expectations import expectations
from sft.config.foreign import (
    ALIASES,
    FOREIGN,
    LIMITS_OF_A_TURN,
    PER_DEVICE,
    SHARD_GROUP,
    TODAYS_DEFAULTS,
    is_count,
)
from sft.config.problems import Report, choices, multiples_around, shown

MICRO_BATCH = "data.micro_batch_size_per_gpu"
ACCUMULATION = ("grad_accum", "gradient_accumulation_steps")
"""Micro-batches per step: here the micro-batch is stated, and their number follows."""

OTHER_VALUES: dict[str, dict[Any, Any]] = {
    "data.max_tokens_per_gpu": {-1: None},
    "model.fsdp_config.model_dtype": {"float32": "fp32", "bfloat16": "bf16"},
    "model.fsdp_config.compute_dtype": {"float32": "fp32", "bfloat16": "bf16"},
    "optim.lr_scheduler": {
        "constant_with_warmup": "constant",
        "cosine_with_min_lr": "cosine",
        "warmup_stable_decay": "wsd",
    },
    "trainer.max_ckpt_to_keep": {-1: None},
    "trainer.test_freq": {"after_each_epoch": -1, "epoch": -1},
    "trainer.total_training_steps": {-1: None},
    "trainer.logger": {"tracking": "wandb", "file": "jsonl", "none": "console"},
}
"""Other words for the values of our own keys: {key: {theirs: ours}}; of a list, for each of its items."""


class Claim(NamedTuple):
    """A name that asks for a value of one of our keys."""

    name: str
    written: str
    value: Any
    tail: str = ""  # what the warning adds


def foreign(name: str) -> str | None:
    """Return the entry of FOREIGN for `name`, or for a section around it; None if there is none."""
    while name:
        if name in FOREIGN:
            return name
        name = name.rpartition(".")[0]
    return None


class Names:
    """Replaces foreign names in `values` by keys of the schema. All in place, everything said once to `report`.

    The command line (the keys in `given`) beats YAML, whatever the names; between equals a default gives way.
    """

    def __init__(
        self, values: dict[str, Any], given: set[str], defaults: Callable[[], Mapping[str, Any]], report: Report
    ) -> None:
        self._values, self._given, self._defaults, self._report = values, given, defaults, report
        self._micro_batch: list[Claim] = []
        self._per_device: list[Claim] = []
        self.settled: set[str] = set()
        """Our keys that other names have set."""

    def settle(self) -> None:
        """Replace the names that can be read without knowing the number of ranks."""
        values = self._values
        if values.get("data.use_dynamic_bsz") is False and "data.max_token_len_per_gpu" in values:
            budget = values.pop("data.max_token_len_per_gpu")
            self._report.warn(f"data.max_token_len_per_gpu={shown(budget)} has no effect: data.use_dynamic_bsz=false.")
        claims: dict[str, list[Claim]] = {}
        fills: list[tuple[str, Claim]] = []
        for name in [name for name in ALIASES if name in values]:
            written, value = self._take(name)
            claims.setdefault(ALIASES[name], []).append(Claim(name, written, value))
        for name in [name for name in PER_DEVICE if name in values]:
            self._per_device.append(Claim(name, *self._take(name)))
        for name in [name for name in values if foreign(name) and name not in self._defaults()]:
            self._read(name, claims, fills)
        if limits := [name for name in LIMITS_OF_A_TURN if name in values]:
            self._add_limits(limits, claims)
        self._micro_batch = claims.pop(MICRO_BATCH, [])  # accumulation may have a say in it, too
        for key, several in claims.items():
            self._agree(key, several)
        for key, claim in fills:
            if key not in claims and not self._is_set(key):
                self._agree(key, [claim])
        self._other_values()

    def divide(self, world_size: int, dp: int) -> None:
        """Replace the names whose meaning depends on the number of ranks and on what `settle` has found."""
        if SHARD_GROUP in self._values:
            self._divide_into_shard_groups(world_size, dp)
        claims = self._micro_batch + self._per_device
        self._multiply(dp)
        for name in ACCUMULATION:
            if name in self._values:
                written, steps = self._take(name)
                if samples := self._micro_batch_of(name, steps, dp):
                    step = shown(self._values.get("data.train_batch_size"))
                    claims.append(Claim(name, written, samples, f"; a step stays data.train_batch_size={step} samples"))
        if claims:
            self._agree(MICRO_BATCH, claims)

    def _take(self, name: str) -> tuple[str, Any]:
        value = self._values.pop(name)
        return f"{name}={shown(value)}", value

    def _read(self, name: str, claims: dict[str, list[Claim]], fills: list[tuple[str, Claim]]) -> None:
        entry = FOREIGN[foreign(name) or ""]
        written, value = self._take(name)
        reading = entry.reads(value)
        if reading is None:
            self._report.problem(f"{written} is not possible here: {entry.reason}; remove it.")
            return
        for key, ours in reading.sets.items():
            claims.setdefault(key, []).append(Claim(name, written, ours))
        fills += [(key, Claim(name, written, ours)) for key, ours in reading.fills.items()]
        if not reading.sets and not reading.fills:
            self._report.warn(f"{written} has no effect: {entry.reason}.")

    def _add_limits(self, names: list[str], claims: dict[str, list[Claim]]) -> None:
        taken = [self._take(name) for name in names]
        written = " and ".join(text for text, _ in taken)
        if len(names) == 1 and "data.max_length" not in self._given:
            self._report.problem(f"{written} bounds a part of a sample; set data.max_length, which bounds all of it.")
        elif len(names) == 2 and all(type(value) is int for _, value in taken):
            claims.setdefault("data.max_length", []).append(Claim(names[0], written, sum(value for _, value in taken)))
        else:
            self._report.warn(f"{written} has no effect: data.max_length bounds the whole sample.")

    def _is_set(self, key: str) -> bool:
        return key in self._given or (key in self._values and self._values[key] != self._defaults().get(key))

    def _agree(self, key: str, claims: list[Claim]) -> None:
        """Set `key` to what `claims` ask for: one warning each, a problem where two disagree."""
        values, own = self._values, Claim(key, f"{key}={shown(self._values.get(key))}", self._values.get(key))
        for claim in claims:
            self._report.warn(f"{claim.written} is read as {key}={shown(claim.value)}{claim.tail}.")
        of_command_line = [claim for claim in claims if claim.name in self._given]
        rivals = [*of_command_line, own] if key in self._given and key in values else of_command_line
        if not rivals:
            rivals = [*claims, own] if key in values and values[key] != self._defaults().get(key) else claims
        first = rivals[0]
        for rival in rivals[1:]:
            if rival.value != first.value:
                self._report.problem(
                    f"{first.written} and {rival.written} disagree (both set {key}); keep one, best {key}."
                )
        values[key] = first.value
        self.settled.add(key)

    def _other_values(self) -> None:
        for key, words in OTHER_VALUES.items():
            value = self._values.get(key)
            ours = [_other(item, words) for item in value] if isinstance(value, list) else _other(value, words)
            if ours != value:
                self._report.warn(f"{key}={shown(value)} is read as {key}={shown(ours)}.")
                self._values[key] = ours

    def _multiply(self, dp: int) -> None:
        """Set data.train_batch_size to micro-batch x accumulation x dp, which the user gave by other names."""
        steps = next((self._values[name] for name in ACCUMULATION if name in self._values), 1)
        if not is_count(steps):
            return
        claims = [
            claim._replace(value=claim.value * steps * dp, tail=f": micro-batch x accumulation {steps} x dp={dp}")
            for claim in self._per_device
            if is_count(claim.value)
        ]
        if claims and not self._is_set("data.train_batch_size"):
            self._agree("data.train_batch_size", claims)

    def _divide_into_shard_groups(self, world_size: int, dp: int) -> None:
        written, ranks = self._take(SHARD_GROUP)
        if type(ranks) is not int:
            self._report.problem(f"{written} must be a whole number of ranks, or -1 for all of them.")
        elif ranks < 1 or ranks >= world_size:
            self._agree("model.fsdp_config.dp_replicate", [Claim(SHARD_GROUP, written, 1)])
        elif world_size % ranks:
            self._report.problem(f"{written} must divide the number of ranks, {world_size}.")
        else:  # the ranks that share a row of tokens always share the weights, too
            copies = min(world_size // ranks, dp)
            self._agree("model.fsdp_config.dp_replicate", [Claim(SHARD_GROUP, written, copies)])

    def _micro_batch_of(self, name: str, steps: Any, dp: int) -> int | None:
        """Return the micro-batch that `steps` of accumulation imply; None, with a problem, if it is no whole number."""
        samples = self._values.get("data.train_batch_size", 0)
        if not is_count(steps):
            self._report.problem(f"{name}={shown(steps)} must be a whole number of at least 1.")
        elif is_count(samples) and samples % (dp * steps):
            self._report.problem(
                f"{name}={steps} does not divide data.train_batch_size={samples} over dp={dp} (train_batch_size = dp x "
                f"micro-batch x {name}); try data.train_batch_size={choices(multiples_around(dp * steps, samples))}."
            )
        elif is_count(samples):
            return samples // (dp * steps)
        return None


def other_defaults(values: Mapping[str, Any], given: set[str]) -> str | None:
    """Return a sentence on the defaults of today's verl that differ from the values here; None if none does.

    given: keys that the user has set, by whatever name.
    """
    if "data.use_dynamic_bsz" in given:
        given = given | {"data.max_tokens_per_gpu"}
    left = [
        f"{key}={shown(values.get(key))} (there {shown(theirs)})"
        for key, theirs in TODAYS_DEFAULTS.items()
        if key not in given and values.get(key) != theirs
    ]
    return f"Defaults that are others than in today's verl: {', '.join(left)}." if left else None


def like(key: str) -> list[str]:
    """Return at most two keys that `key` may have been meant for: of that name elsewhere, or of a similar one."""
    leaf, known = key.rpartition(".")[2], list(expectations())
    if leaf in ALIASES:
        return [ALIASES[leaf]]
    if namesakes := [name for name in known if name.rpartition(".")[2] == leaf]:
        return namesakes[:2]
    if leaf in FOREIGN:
        return []
    keys = {name.rpartition(".")[2]: name for name in known}
    others = {name: name for name in (*ALIASES, *ACCUMULATION) if "." not in name}
    for names in (keys, others):
        if near := get_close_matches(leaf, names, n=2, cutoff=LEAST_SIMILARITY):
            return [names[name] for name in near]
    return []


LEAST_SIMILARITY = 0.75
"""Below it a guess is no help: optim.learn is not trainer.seed."""


def _other(value: Any, words: Mapping[Any, Any]) -> Any:
    return words[value] if isinstance(value, str | int) and not isinstance(value, bool) and value in words else value
