"""Watch the routers of a mixture of experts: how evenly they spread tokens, and a loss that makes them do so.

    L = E · Σ_e f_e · P_e        f_e = how often expert e is among the chosen k (Σ f = k)
                                 P_e = its mean probability (Σ P = 1)

f and P are means over all tokens of the step, on all ranks, and over all layers with experts; padding does not count.
L is k where all experts are chosen equally, and up to E where they are not. f is a count and has no gradient. Once it
is known, L is a sum over tokens, E · Σ_e f_e · Σ_t p_te / N, so it does not matter which micro-batch or rank computes
which token. A step of several micro-batches therefore counts first, in a forward pass without gradients; a step of one
counts in its own forward.

Shapes: T tokens of a micro-batch on one rank, E experts, k of them for each token.
Source: Switch Transformer, Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6; layers joined as transformers'
load_balancing_loss_func does; over the whole step: Qiu et al. 2025, arXiv:2501.11873.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from sft.errors import InputError
from sft.parallel.fsdp import class_name
from sft.parallel.world import ALL_RANKS, log
from sft.types import Batch

KNOB = "model.router_aux_loss"


def watch_routers(model: PreTrainedModel, asked: float | None) -> None:
    """Put hooks on the routers and experts of `model`, and note what they tell as model.routers.

    To be called before the model is sharded or compiled. asked: the coefficient of the loss; None: that of config.json,
    where it asks for one with output_router_logits=true. Raises InputError where a loss is asked for that transformers
    does not define for this architecture.
    """
    coefficient = _coefficient_of(model) if asked is None else asked
    if coefficient and (reason := _why_unbalanced(model)):
        source = "config.json (output_router_logits, router_aux_loss_coef)" if asked is None else f"{KNOB}={asked:g}"
        raise InputError(
            f"{source} asks for a loss that balances experts, but {reason}; set {KNOB}=0 to train without it."
        )
    vars(model)["routers"] = Routers(model, coefficient)
    if coefficient:
        log.info("%g times the load-balancing loss of the routers is added to the loss (%s)", coefficient, KNOB)


class Routers:
    """What the routers of a model did in the step under way, and its load-balancing loss."""

    def __init__(self, model: PreTrainedModel, coefficient: float) -> None:
        """Put hooks on the routers (for the loss) and on the experts (for their shares); most models have neither."""
        self.coefficient = coefficient
        self._top_k = _top_k(model)
        self._is_watching = False
        self._is_token = torch.ones(0, dtype=torch.bool)  # [T], of the forward watched last
        self._logits: list[torch.Tensor] = []  # [T, E] of each layer, of the same forward
        self._frequencies: torch.Tensor | None = None  # see _count; of the step, where they were counted first
        self._loss = torch.zeros(())  # L, this rank's part of it so far
        self._chosen: dict[int, torch.Tensor] = {}  # by layer, how many tokens of the step each expert has had [E]
        if coefficient:
            for module, index in _routers(model):
                module.register_forward_hook(partial(self._note_logits, index))
        for layer, (module, experts) in enumerate(_experts(model)):
            module.register_forward_pre_hook(partial(self._note_choices, layer, experts), with_kwargs=True)

    def begin_step(self, forward: Callable[[Batch], object], batches: Sequence[Batch], device: torch.device) -> None:
        """Forget the last step; where a loss is asked for and there are several `batches`, count their choices first.

        A collective over all ranks in that case. forward: runs the model on a batch, which must lie on `device`
        """
        self._frequencies, self._loss = None, torch.zeros(())
        if self.coefficient and len(batches) > 1:
            counted = []
            with torch.no_grad():
                for batch in (batch.to(device) for batch in batches):
                    with self.watching(batch):
                        forward(batch)
                    counted.append(self._count())
            self._frequencies = _over_all_ranks(torch.stack(counted).sum(dim=0))
        self._chosen = {}

    @contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        """Note what the routers do in the forward pass of `batch` inside; not when a backward pass recomputes it."""
        self._is_watching, self._is_token, self._logits = True, batch.is_token.flatten(), []
        try:
            yield
        finally:
            self._is_watching = False

    def loss(self) -> torch.Tensor | float:
        """Return what the forward watched last adds to the loss of the step: coefficient · L, this batch's part of it.

        The first one of a step is a collective over all ranks, unless begin_step counted. 0.0 where no loss is asked.
        """
        if not self.coefficient:
            return 0.0
        if self._frequencies is None:
            self._frequencies = _over_all_ranks(self._count())
        chosen, tokens = self._frequencies[:-1].float(), self._frequencies[-1].float()
        sums = [(logits.softmax(-1).float() * self._is_token[:, None]).sum(dim=0) for logits in self._logits]
        probabilities = torch.stack(sums).sum(dim=0) / tokens
        loss = len(probabilities) * (chosen / tokens * probabilities).sum()
        self._loss = self._loss.to(loss.device) + loss.detach()
        self._logits = []
        return self.coefficient * loss

    def to_be_summed(self) -> dict[str, torch.Tensor]:
        """Return what the one sum over all ranks at the end of a step shall bring the host, by name.

        router_aux_loss: L, this rank's part of it; absent where no loss is asked for
        largest_expert: the most tokens of the step that one expert of one layer had, divided by the ranks; absent
            without experts. It is found on the device, in a collective over all ranks.
        """
        told = {"router_aux_loss": self._loss} if self.coefficient else {}
        if self._chosen:
            chosen = _over_all_ranks(torch.stack([self._chosen[layer] for layer in sorted(self._chosen)]))
            told["largest_expert"] = chosen.max() / dist.get_world_size()
        return told

    def _count(self) -> torch.Tensor:
        """Return [E + 1]: choices of each expert, and tokens, both over all layers of the forward watched last."""
        total = torch.zeros(self._logits[0].shape[-1] + 1, dtype=torch.float64, device=self._logits[0].device)
        for logits in self._logits:
            # Of the softmax, as transformers does: equal logits of 16 bits can have another order in fp32.
            chosen = logits.detach().softmax(-1).topk(self._top_k, dim=-1).indices
            total[:-1] += _tally(chosen, self._is_token, logits.shape[-1])
            total[-1] += self._is_token.sum()
        return total

    def _note_logits(self, index: int, module: torch.nn.Module, args: Any, output: Any) -> None:
        if self._is_watching:
            logits = output if isinstance(output, torch.Tensor) else output[index]
            self._logits.append(logits.flatten(0, -2))

    def _note_choices(self, layer: int, experts: int, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if self._is_watching:
            chosen = kwargs["top_k_index"] if "top_k_index" in kwargs else args[1]
            tally = _tally(chosen.flatten(0, -2), self._is_token, experts)
            self._chosen[layer] = self._chosen[layer] + tally if layer in self._chosen else tally


def _tally(chosen: torch.Tensor, is_token: torch.Tensor, experts: int) -> torch.Tensor:
    """Return how many tokens chose each expert: [T, k] numbers of experts -> float64 [E]. The host does not wait."""
    counts = torch.zeros(experts + 1, dtype=torch.float64, device=chosen.device)
    each = is_token.to(counts.dtype).repeat_interleave(chosen.shape[-1])
    # Some architectures have numbers beyond the last expert, for tokens that pass by.
    return counts.scatter_add_(0, chosen.flatten().long().clamp(max=experts), each)[:experts]


def _over_all_ranks(counts: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(counts, group=ALL_RANKS)
    return counts


def _coefficient_of(model: PreTrainedModel) -> float:
    text = model.config.get_text_config()
    asks = getattr(text, "output_router_logits", False)
    return (getattr(text, "router_aux_loss_coef", None) or 0.0) if asks else 0.0


def _why_unbalanced(model: PreTrainedModel) -> str | None:
    """Return why transformers' load-balancing loss is not that of `model`; None if it is."""
    name = class_name(model)
    if not _routers(model):
        return f"{name} has no routers that transformers tells of"
    modules = [sys.modules[kind.__module__] for kind in type(model).__mro__ if kind.__module__ in sys.modules]
    function = next((vars(each)["load_balancing_loss_func"] for each in modules if _has_loss(each)), None)
    if function is None:
        return f"transformers defines none for {name}"
    if list(inspect.signature(function).parameters) != ["gate_logits", "num_experts", "top_k", "attention_mask"]:
        return f"that of {name} has a form of its own, which is not built here"
    return None


def _has_loss(module: Any) -> bool:
    return "load_balancing_loss_func" in vars(module)


def _routers(model: PreTrainedModel) -> list[tuple[torch.nn.Module, int]]:
    """Return the modules whose output holds router logits, in order, each with the place of the logits in it."""
    recorders = (getattr(model.get_decoder(), "_can_record_outputs", None) or {}).get("router_logits") or []
    recorders = recorders if isinstance(recorders, list) else [recorders]
    recorders = [each if isinstance(each, OutputRecorder) else OutputRecorder(each) for each in recorders]
    return [
        (module, recorder.index)
        for name, module in model.get_decoder().named_modules()
        for recorder in recorders
        if isinstance(module, recorder.target_class) and (recorder.layer_name or "") in name
    ]


def _experts(model: PreTrainedModel) -> list[tuple[torch.nn.Module, int]]:
    """Return the modules that hold the experts of a layer, in order, with their number of experts.

    They are those of the form of transformers 5: forward(hidden_states, top_k_index, top_k_weights), weights [E, ., .].
    """
    found = []
    for module in model.modules():
        fused = [weight for weight in module.parameters(recurse=False) if weight.ndim == 3]
        if fused and list(inspect.signature(type(module).forward).parameters)[2:3] == ["top_k_index"]:
            found.append((module, len(fused[0])))
    return found


def _top_k(model: PreTrainedModel) -> int:
    told = getattr(model, "num_experts_per_tok", None)
    return told or getattr(model.config.get_text_config(), "num_experts_per_tok", None) or 1
