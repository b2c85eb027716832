"""Layers that carry something from token to token beside attention: short convolutions, Mamba, linear attention.

In a row of several samples they would carry it from one sample into the next. So each of them is called once per
sample or, on a GPU, told where samples end, if its kernels listen. Neither is believed: `prove_separation` changes one
sample of a row and finds the outputs of the others bit for bit the same, or refuses the model.

Shapes: T tokens of a row, t = T / sp of them on each rank that shares it, D width, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from sft.errors import InputError
from sft.model.attention.choice import PLAIN_LAYERS
from sft.parallel.fsdp import class_name, on_trial
from sft.parallel.ulysses import gather_tokens
from sft.parallel.world import ALL_RANKS, log, sum_over

LENGTHS = (5, 3, 4)
"""Tokens of the samples of the row that is tried, for each rank that shares it."""


@dataclass
class Row:
    """The row that a model is computing: its hook notes it, its mixers read it, again when backward recomputes them."""

    lengths: tuple[int, ...] | None = None  # of the samples; None: not packed
    cu_seqlens: torch.Tensor | None = None
    by_kernel: bool = False  # mixers are told where samples end, and called once
    group: dist.ProcessGroup | None = None  # the ranks that share the row, where there are several

    def note(self, _: torch.nn.Module, args: Any, options: dict[str, Any]) -> None:
        self.lengths, self.cu_seqlens = options.get("sample_lengths"), options.get("cu_seqlens")


def separate_samples(model: PreTrainedModel) -> None:
    """Let every mixer of a packed `model` see one sample at a time. For a model that is not sharded yet.

    Raises InputError if its configuration speaks of layers that mix tokens, and none of a known kind is found.
    """
    mixers = dict(_mixers(model))
    if not mixers:
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
        if getattr(model, "_is_stateful", False) or kinds - PLAIN_LAYERS:
            _refuse(model, "and they are of no kind that is known here")
        return
    row = Row()
    vars(model)["row_of_mixers"] = row  # to nn.Module, an attribute is a parameter or a module
    model.register_forward_pre_hook(row.note, with_kwargs=True)
    for module in mixers.values():
        # A list of lengths is no part of a compiled graph: every new one would compile it again.
        module.forward = torch.compiler.disable(_sample_by_sample(module.forward, row))
    log.info("%s: %d layers that mix tokens get one sample at a time", class_name(model), len(mixers))


def share_rows(model: PreTrainedModel, group: dist.ProcessGroup) -> None:
    """Tell the mixers of `model` that the ranks of `group` share each row; every one of them computes all of it."""
    if row := vars(model).get("row_of_mixers"):
        row.group = group


def prove_separation(model: PreTrainedModel, device: torch.device) -> None:
    """Raise InputError if a sample changes what the model says of another one in its row. Every rank calls it.

    A model without mixers passes untried. On a GPU, the mixers' own kernels are tried first.
    """
    row: Row | None = vars(model).get("row_of_mixers")
    if row is None:
        return
    with on_trial(model):
        row.by_kernel = device.type == "cuda" and _kernels_separate(model, row, device)
        if not row.by_kernel and _leaks(model, row, device):
            _refuse(model, "and a sample changed what the model says of another one in its row")
    how = "their kernels are told where samples end" if row.by_kernel else "they are called once per sample"
    log.info("layers that mix tokens: %s; in a trial, no sample changed another one", how)


def _mixers(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, module in model.named_modules():
        has_convolution = any(isinstance(child, torch.nn.Conv1d) for child in module.children())
        is_linear_attention = "LightningAttention" in class_name(module)
        if (has_convolution or is_linear_attention) and not any(part in name for part in ("vision", "audio")):
            yield name, module


def _sample_by_sample(forward: Callable[..., Any], row: Row) -> Callable[..., Any]:
    """Call `forward` of a mixer, [1, t, D] -> [1, t, ...], without carrying anything from sample to sample."""
    parameters = inspect.signature(forward).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    takes_more = len(named) < len(parameters)

    @functools.wraps(forward)
    def separated(*args: Any, **options: Any) -> Any:
        if row.lengths is None:
            return forward(*args, **options)
        # What the layer hands down for attention means something else to a mixer's kernels, or nothing.
        options = {name: value for name, value in options.items() if name in named}
        width = next(x.shape[1] for x in (*args, *options.values()) if isinstance(x, torch.Tensor))
        given = tree_map_only(torch.Tensor, lambda x: _whole(x, width, row), (args, options))
        if row.by_kernel and takes_more:
            assert row.cu_seqlens is not None
            samples = torch.arange(len(row.lengths), dtype=torch.int32, device=row.cu_seqlens.device)
            seq_idx = samples.repeat_interleave(row.cu_seqlens.diff(), output_size=sum(row.lengths))[None]
            outputs = [forward(*given[0], **given[1], seq_idx=seq_idx, cu_seq_lens_q=row.cu_seqlens)]
        else:
            outputs, start = [], 0
            for length in row.lengths:
                part = tree_map_only(torch.Tensor, lambda x, at=start, n=length: _part(x, at, n, row), given)
                outputs.append(forward(*part[0], **part[1]))
                start += length
        return _joined(outputs, width, row)

    return separated


def _whole(x: torch.Tensor, width: int, row: Row) -> torch.Tensor:
    """Return what holds one entry per token, of all ranks that share the row: [1, t, ...] -> [1, T, ...]."""
    return gather_tokens(x, row.group) if row.group and x.shape[:2] == (1, width) else x


def _part(x: torch.Tensor, start: int, length: int, row: Row) -> torch.Tensor:
    """Return the entries of one sample; what does not hold one per token stays whole."""
    assert row.lengths is not None
    return x.narrow(1, start, length) if x.shape[:2] == (1, sum(row.lengths)) else x


def _joined(outputs: list[Any], width: int, row: Row) -> Any:
    """Return the outputs for all samples as one, of this rank's tokens."""
    if isinstance(outputs[0], tuple):
        return tuple(_joined(list(parts), width, row) for parts in zip(*outputs, strict=True))
    if not isinstance(outputs[0], torch.Tensor):
        return outputs[0]
    joined = torch.cat(outputs, dim=1)
    return joined.narrow(1, row.group.rank() * width, width) if row.group else joined


def _kernels_separate(model: PreTrainedModel, row: Row, device: torch.device) -> bool:
    """Whether the mixers' kernels, told where samples end, keep them apart; transformers' stand-ins raise instead."""
    row.by_kernel = True
    try:
        return not _leaks(model, row, device)
    except (ValueError, TypeError, ImportError) as error:
        log.info("layers that mix tokens: their kernels are not used (%s)", error)
        return False


@torch.no_grad()
def _leaks(model: PreTrainedModel, row: Row, device: torch.device) -> bool:
    """Whether the first or the last sample of a row changes what the model says of the others."""
    sp, rank = (row.group.size(), row.group.rank()) if row.group else (1, 0)
    lengths = tuple(length * sp for length in LENGTHS)
    ends = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    mine = slice(rank * sum(LENGTHS), (rank + 1) * sum(LENGTHS))
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None, mine]
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, sum(lengths)), generator=torch.Generator().manual_seed(0)).to(device)
    owner = torch.arange(len(lengths), device=device).repeat_interleave(ends.diff())[mine]

    def logits(ids: torch.Tensor) -> torch.Tensor:
        boundaries = {"sample_lengths": lengths, "cu_seqlens": ends, "max_seqlen": max(lengths)}
        return model(input_ids=ids[:, mine], position_ids=positions, use_cache=False, **boundaries).logits[0]

    with Replay(model) as replay:
        expected, leaking = logits(ids), 0
        for sample in (0, len(lengths) - 1):
            changed = ids.clone()
            changed[:, ends[sample] : ends[sample + 1]] += 1
            replay.others = owner != sample
            found = logits(changed % vocabulary)
            leaking += replay.differed or not torch.equal(found[replay.others], expected[replay.others])
    return sum_over(ALL_RANKS, leaking)[0] > 0


class Replay:
    """Make experts answer as in the first forward wherever they are asked the same.

    The number of tokens that an expert gets decides how its products are rounded: another routing of one sample would
    change the last bits of the others, although nothing of it reached them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.others: torch.Tensor | None = None  # bool [t], the tokens that must be as before; None: the first forward
        self.differed = False  # whether they were not, before some experts
        self._known: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def __enter__(self) -> Replay:
        owners = {
            module
            for module in self._model.modules()
            for child in module.children()
            if not isinstance(child, torch.nn.Conv1d) and any(p.ndim == 3 for p in child.parameters(recurse=False))
        }
        self._handles = [owner.register_forward_hook(self._answer, with_kwargs=True) for owner in owners]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _answer(self, module: torch.nn.Module, args: Any, options: dict[str, Any], output: Any) -> Any:
        asked = next(x for x in (*args, *options.values()) if isinstance(x, torch.Tensor))
        answer = output[0] if isinstance(output, tuple) else output
        if self.others is None:
            self._known[module] = asked.clone(), answer.clone()
            return None
        known_asked, known_answer = self._known[module]
        rows, known_rows = (x.view(-1, x.shape[-1]) for x in (asked, known_asked))
        if len(rows) != len(self.others):  # Llama 4 asks every expert about every token, always in the same number
            return None
        self.differed |= not torch.equal(rows[self.others], known_rows[self.others])
        answer.view(-1, answer.shape[-1])[self.others] = known_answer.view(-1, answer.shape[-1])[self.others]
        return None


def _refuse(model: PreTrainedModel, why: str) -> None:
    raise InputError(
        f"use_remove_padding=true: {class_name(model)} has layers that mix tokens in another way than attention, "
        f"{why}; set use_remove_padding=false."
    )
