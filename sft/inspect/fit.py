"""Answer "does it fit?": what every way to train a model on its rows needs on 1 to 64 ranks, and the best that fits.

Everything is the estimate of sft/model/memory.py on skeletons without memory, so a model of 70B takes seconds.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sft.config import SftConfig
from sft.config.door import changed_keys
from sft.config.mappings import as_overrides, flatten
from sft.config.secrets import without_secrets
from sft.data.dataset import Dataset
from sft.errors import InputError
from sft.model.attention import Choice
from sft.model.memory import ModelSize, estimate, gigabytes
from sft.model.place import build_bare_model
from sft.model.pretrained import load_config
from sft.parallel.ulysses import refuse_impossible_split
from sft.train.forecast import Forecast
from sft.train.forecast_memory import ROOM, load_of, look_ahead, size_of
from sft.train.optim import OPTIMIZERS

RANKS = (1, 2, 4, 8, 64)
DEVICES_GB = (24, 48, 80, 141)
SP_SIZES = (1, 2, 4, 8)
RANK_OF_LORA = 16  # where the configuration has none
GPUS_OF_A_NODE = 8

TIME_OF = {None: 1.0, "selective": 1.05, "full": 1.33}
"""About how long a step takes by what is computed again in backward: a full one is a third more arithmetic."""
TIME_OF_DOUBLING_SP = 1.1
"""About how much longer a step takes when twice as many ranks share a row: they exchange heads in every layer."""


@dataclass(frozen=True)
class Way:
    """One way to train."""

    mode: str  # "full", "LoRA", "QLoRA"
    optimizer: str
    checkpointing: str | None
    sp_size: int

    @property
    def slowness(self) -> float:
        """Return how long a step takes beside one that recomputes nothing and splits no sample: 1.0 is as long."""
        return TIME_OF[self.checkpointing] * TIME_OF_DOUBLING_SP ** np.log2(self.sp_size)

    def of(self, config: SftConfig) -> SftConfig:
        """Return `config` changed to this way."""
        again = self.checkpointing is not None
        kind = self.checkpointing or config.model.gradient_checkpointing_kind
        model = replace(
            in_mode(config, self.mode).model, enable_gradient_checkpointing=again, gradient_checkpointing_kind=kind
        )
        optim = replace(config.optim, name=self.optimizer)
        return replace(config, model=model, optim=optim, ulysses_sequence_parallel_size=self.sp_size)

    def __str__(self) -> str:
        told = [self.mode, self.optimizer]
        told += [f"{self.checkpointing} checkpointing"] * (self.checkpointing is not None)
        return ", ".join([*told, *[f"sp={self.sp_size}"] * (self.sp_size > 1)])


@dataclass(frozen=True)
class Fit:
    """Bytes per rank of every way on every number of ranks; a way is missing where it is impossible."""

    config: SftConfig
    needs: dict[tuple[Way, int], int]

    def lines(self) -> Iterator[str]:
        """Write what every way needs, then the fastest that fits on each kind of machine, with its command."""
        yield f"fit: GB that a rank needs, by the number of ranks; it fits in {ROOM:.0%} of a device"
        yield _row("", *(f"{ranks} rank{'s' * (ranks > 1)}" for ranks in RANKS))
        for way, names in self._ways():
            if self._is_as_with_fewer(way):
                continue
            cells = [self.needs.get((way, ranks)) for ranks in RANKS]
            told = str(replace(way, optimizer="|".join(names)))
            yield _row(told, *("-" if bytes_ is None else f"{bytes_ / 1e9:,.1f}" for bytes_ in cells))
        yield "  (left out: sp where it needs as much as without; optimizers that need the same share a line)"
        yield "the fastest that fits (fewer changes of what is trained go first):"
        for ranks in RANKS:
            devices_of: dict[Way | None, list[int]] = {}
            for gigabytes_ in DEVICES_GB:
                devices_of.setdefault(self.fastest(ranks, gigabytes_), []).append(gigabytes_)
            for way, devices in devices_of.items():
                kind = f"{ranks} x {', '.join(map(str, devices))} GB"
                if way is None:
                    yield f"  {kind}: {self._why_none(ranks)}"
                    continue
                yield f"  {kind}: {way}: {gigabytes(self.needs[way, ranks])} per rank"
                yield f"    {self.command(way, ranks)}"

    def fastest(self, ranks: int, device_gb: int) -> Way | None:
        """Return the best way that fits: as much like what was asked for as possible, then the fastest."""
        fitting = [
            way
            for (way, on), needed in self.needs.items()
            if on == ranks and needed <= ROOM * device_gb * 1e9 and self._shares_steps_evenly(ranks // way.sp_size)
        ]
        modes = list(modes_of())
        return min(
            (way for way in fitting if modes.index(way.mode) >= modes.index(mode_of(self.config))),
            key=lambda way: (
                modes.index(way.mode),
                way.optimizer != self.config.optim.name,
                way.slowness,
                self.needs[way, ranks],
            ),
            default=None,
        )

    def command(self, way: Way, ranks: int) -> str:
        """Return the command that trains so, with everything of the configuration that is not a default."""
        config = way.of(self.config)
        values = flatten(without_secrets(asdict(config)))
        keys = [key for key in values if key in changed_keys(config)]
        nodes = -(-ranks // GPUS_OF_A_NODE)
        start = "--standalone" if nodes == 1 else f"--nnodes={nodes} --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT"
        overrides = as_overrides({key: values[key] for key in keys})
        return shlex.join(
            ["torchrun", *start.split(), f"--nproc_per_node={ranks // nodes}", "-m", "sft.fsdp_sft_trainer", *overrides]
        )

    def _shares_steps_evenly(self, dp: int) -> bool:
        """Return True if the config door would let this batch size pass on `dp` data-parallel ranks."""
        data = self.config.data
        of_a_rank, left = divmod(data.train_batch_size, dp)
        return not left and (data.max_tokens_per_gpu is not None or of_a_rank % data.micro_batch_size_per_gpu == 0)

    def _is_as_with_fewer(self, way: Way) -> bool:
        """Return True if sharing rows saves less than a thirtieth, on any number of ranks."""
        alone = replace(way, sp_size=1)
        return way.sp_size > 1 and all(
            needed > 29 / 30 * self.needs[alone, ranks] for (other, ranks), needed in self.needs.items() if other == way
        )

    def _why_none(self, ranks: int) -> str:
        if any(self._shares_steps_evenly(ranks // way.sp_size) for way, on in self.needs if on == ranks):
            return "nothing fits"
        return f"data.train_batch_size={self.config.data.train_batch_size} cannot be shared evenly by so many ranks"

    def _ways(self) -> Iterator[tuple[Way, list[str]]]:
        """Yield ways, those that need the same but for the optimizer's name together."""
        together: dict[Any, tuple[Way, list[str]]] = {}
        for way in dict.fromkeys(way for way, _ in self.needs):
            same = (replace(way, optimizer=""), *(self.needs.get((way, ranks)) for ranks in RANKS))
            together.setdefault(same, (way, []))[1].append(way.optimizer)
        yield from together.values()


def fit_of(
    config: SftConfig,
    source: Path,
    dataset: Dataset,
    attention: Choice,
    *,
    tokens: int,
    supervised_tokens: np.ndarray,
) -> Fit:
    """Estimate every way to train the model in `source`. tokens: rows of its vocabulary, as build_bare_model takes it.

    supervised_tokens: of every sample
    """
    sizes: dict[str, ModelSize] = {}
    for mode in modes_of():
        model, _ = build_bare_model(in_mode(config, mode), source, attention, tokens=tokens)
        sizes[mode] = size_of(config, model)
    architecture = load_config(source, trust_remote_code=config.model.trust_remote_code)
    needs: dict[tuple[Way, int], int] = {}
    for sp in SP_SIZES:
        for ranks in _ranks_for(config, architecture, sp):
            view = _look_ahead(config, dataset, ranks=ranks, sp=sp, supervised_tokens=supervised_tokens)
            for mode, size in sizes.items():
                for optimizer in OPTIMIZERS:
                    for checkpointing in TIME_OF:
                        way = Way(mode, optimizer, checkpointing, sp)
                        needs[way, ranks] = _bytes(way.of(config), size, view, ranks)
    order = {way: n for n, way in enumerate(_in_order(way for way, _ in needs))}
    return Fit(config, dict(sorted(needs.items(), key=lambda item: order[item[0][0]])))


def modes_of() -> Iterator[str]:
    """Yield the modes that can be tried here, those that train the most weights first."""
    yield "full"
    if find_spec("peft") is not None:
        yield from ("LoRA", "QLoRA")


def mode_of(config: SftConfig) -> str:
    """Return the mode that the configuration asks for."""
    if not config.model.lora_rank:
        return "full"
    return "QLoRA" if config.model.base_dtype != "bf16" else "LoRA"


def in_mode(config: SftConfig, mode: str) -> SftConfig:
    """Return `config` changed to a mode."""
    changes: dict[str, Any] = {
        "lora_rank": 0 if mode == "full" else config.model.lora_rank or RANK_OF_LORA,
        "base_dtype": "nf4" if mode == "QLoRA" else "bf16",
    }
    if mode != "LoRA":
        changes["target_parameters"] = None
    return replace(config, model=replace(config.model, **changes))


def _ranks_for(config: SftConfig, architecture: Any, sp: int) -> Iterator[int]:
    """Yield the numbers of ranks on which `sp` of them can share a row."""
    if sp > 1 and not config.use_remove_padding:
        return
    for ranks in RANKS:
        if ranks % (sp * config.model.fsdp_config.dp_replicate):
            continue
        try:
            refuse_impossible_split(architecture, sp, ranks=ranks)
        except InputError:
            return
        yield ranks


def _look_ahead(config: SftConfig, dataset: Dataset, *, ranks: int, sp: int, supervised_tokens: np.ndarray) -> Forecast:
    """Look at the micro-batches of ranks that share a step evenly: more of them than that wait, and need no more."""
    batch = config.data.train_batch_size
    dp = next(dp for dp in range(ranks // sp, 0, -1) if batch % dp == 0)
    if config.data.max_tokens_per_gpu is not None:
        dataset = replace(dataset, max_tokens=config.data.max_tokens_per_gpu * sp)
    return look_ahead(replace(config, ulysses_sequence_parallel_size=sp), dataset, dp * sp, supervised_tokens)


def _bytes(config: SftConfig, size: ModelSize, view: Forecast, ranks: int) -> int:
    tokens, logits = view.most_positions // view.sp_size, view.most_logits // view.sp_size
    load = load_of(config, ranks=ranks, tokens=tokens, logits=logits, device="cuda")
    several = view.micro_batches > 1
    # reduce_gradients=auto keeps whole gradients only where there is room for them.
    whole = several and config.model.fsdp_config.reduce_gradients == "once"
    return estimate(size, replace(load, several_micro_batches=several, whole_gradients=whole)).total


def _in_order(ways: Iterable[Way]) -> list[Way]:
    kinds = list(TIME_OF)
    modes, optimizers = ["full", "LoRA", "QLoRA"], list(OPTIMIZERS)
    return sorted(
        set(ways),
        key=lambda way: (
            modes.index(way.mode), optimizers.index(way.optimizer), way.sp_size, kinds.index(way.checkpointing)
        ),
    )  # fmt: skip


def _row(name: str, *cells: str) -> str:
    return f"  {name:<56}" + "".join(f"{cell:>10}" for cell in cells)
