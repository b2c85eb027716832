"""Low-rank adapters through peft, on a model that is sharded before it has any memory.

    skeleton (meta) -> add_adapters -> (the caller shards and loads the frozen weights) -> start_adapters

    y = W x + s·B A x        W [O, I] frozen, A [R, I] and B [O, R] trained          (LoRA, Hu et al. 2021)
    s = alpha / R, or alpha / sqrt(R) with rsLoRA                                     (Kalajdzievski 2023)
    W' = m·(W + s·BA) / ‖W + s·BA‖ with DoRA, norm of each row, m [O] trained as well (Liu et al. 2024)

Shapes: O and I outputs and inputs of a linear module, R the rank, E experts whose matrices are one parameter.

peft exchanges the targeted modules inside the model and nothing else: the model keeps its class and its forward, a
frozen weight its name but for `.base_layer`. So sharding, loading, loss and optimizer need not know of adapters.
Experts are no modules; there, peft adds s·BA to the weight [E, O, I] while the module around it computes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from sft.errors import InputError
from sft.files import let_others_read
from sft.model.adapter import Adapter
from sft.model.lora_targets import (
    MAX_NAMES_SHOWN,
    few,
    find_module_to_save,
    find_parameters,
    find_targets,
    is_expert_to_peft,
    parameters_of_experts,
)
from sft.model.names import stored_name
from sft.parallel.fsdp import class_name
from sft.parallel.shards import StoredTensors, local_box, local_part, whole_tensor
from sft.parallel.world import log, on_main_rank

NAME = "default"  # what peft calls an adapter that nobody named
PREFIX = "base_model.model."  # in front of every key of an adapter file: peft's wrapper, which we do without
FILE = "adapter_model.safetensors"
REWRITES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")  # initialisations that take their part out of W


def add_adapters(
    model: PreTrainedModel,
    *,
    base: str,
    rank: int,
    alpha: int,
    targets: str | Sequence[str],
    dropout: float,
    use_rslora: bool,
    use_dora: bool,
    modules_to_save: Sequence[str],
    dtype: torch.dtype,
    target_parameters: Sequence[str] = (),
) -> None:
    """Give the skeleton adapters and freeze the rest; modules_to_save stay trainable as a whole.

    base: name or path of the model, for whoever opens the adapter later. targets: `all-linear` (all but the LM
    head), names, or a regular expression over full names. target_parameters: experts, by the ends of their names.
    dtype: of everything that trains.

    Raises InputError for a target that is not in the model, or cannot have an adapter.
    """
    adapted = find_targets(model, targets) if targets else []
    experts = find_parameters(model, target_parameters)
    kept = sorted({name for target in modules_to_save for name in find_module_to_save(model, target)})
    if both := [name for name in adapted if any(f"{name}.".startswith(f"{module}.") for module in kept)]:
        raise InputError(f"model.modules_to_save trains {few(both)} as a whole; take it out of model.target_modules.")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=rank,
        lora_alpha=alpha,
        target_modules=adapted,  # by full name; peft shortens them where that means the same
        target_parameters=list(target_parameters) or None,
        lora_dropout=dropout,
        use_rslora=use_rslora,
        use_dora=use_dora,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in adapted),
    )
    try:
        inject_adapter_in_model(config, model, NAME, low_cpu_mem_usage=True)
    except ValueError as error:  # peft knows modules of some architectures that it cannot adapt
        raise InputError(f"model.target_modules: {error}") from error
    found = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    wrappers = _adapted_experts(model)
    weights = sorted(_weight_of_experts(name, layer) for name, layer in wrappers.items())
    assert sorted(set(found) - wrappers.keys()) == adapted, "peft adapted other modules than we asked for"
    assert weights == experts, "peft adapted other parameters than we asked for"
    # Our own doing: peft would keep a second, frozen copy of each of these modules.
    for name in kept:
        model.get_submodule(name).requires_grad_(True)
    config.modules_to_save = kept or None  # full names: to peft `norm` is also the end of `q_norm`
    config.target_modules = sorted(config.target_modules or ())  # a set: another order in every process
    vars(model)["adapter_spelling"] = _spelled_for_peft(model, config, found)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(dtype)
    _say_what_trains(model, len(adapted), experts)


@torch.no_grad()
def start_adapters(model: PreTrainedModel, *, seed: int, adapter: str | None, start: bool | str = True) -> None:
    """Fill the adapters of the loaded model: as if nothing were added (B = 0), or from a trained `adapter`.

    start: how A is drawn, "gaussian" with deviation 1/R, or True, kaiming uniform as peft does. The same numbers on any
    number of ranks, drawn from (seed, name). Raises InputError where `adapter` is of another kind than configured.
    """
    if adapter is not None:
        _load_adapter(model, Path(adapter))
        return
    for name, layer in (_adapted_modules(model) | _adapted_experts(model)).items():
        a, b = _weight(layer.lora_A[NAME]), _weight(layer.lora_B[NAME])
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        whole = torch.empty(a.shape)  # small enough to draw everywhere: R x I, for every expert
        if start == "gaussian":
            torch.nn.init.normal_(whole, std=1 / layer.r[NAME], generator=generator)
        else:
            torch.nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
        local_part(a).copy_(whole[local_box(a).slices()])
        local_part(b).zero_()
        if isinstance(layer, LoraLinear) and NAME in layer.lora_magnitude_vector:
            _start_magnitude(layer)


def _start_magnitude(layer: LoraLinear) -> None:
    """Set m = ‖W‖ of each row, so that DoRA, too, starts as the model it starts from."""
    magnitude, weight = _weight(layer.lora_magnitude_vector[NAME]), _weight(layer.get_base_layer())
    norm = torch.linalg.vector_norm(weight, dim=0 if layer.fan_in_fan_out else 1, dtype=torch.float64)
    if isinstance(norm, DTensor) and isinstance(magnitude, DTensor):
        norm = norm.redistribute(magnitude.device_mesh, magnitude.placements)
    local_part(magnitude).copy_(local_part(norm))


def adapters(model: PreTrainedModel) -> dict[str, Callable[[], Adapter]]:
    """How to get the adapter of a weight, by the weight's name; to call one is a collective."""
    wrappers = _adapted_experts(model).items()
    experts = {_weight_of_experts(name, layer): partial(_gather, layer) for name, layer in wrappers}
    return experts | {f"{name}.weight": partial(_gather, layer) for name, layer in _adapted_modules(model).items()}


def _gather(layer: LoraLinear | ParamWrapper) -> Adapter:
    magnitude = _weight(layer.lora_magnitude_vector[NAME]) if NAME in layer.lora_magnitude_vector else None
    return Adapter(
        a=whole_tensor(_weight(layer.lora_A[NAME]), torch.float32),
        b=whole_tensor(_weight(layer.lora_B[NAME]), torch.float32),
        magnitude=None if magnitude is None else whole_tensor(magnitude, torch.float32),
        scaling=layer.scaling[NAME],
        # peft's word for a parameter that is kept as [E, O, I], and not as [E, I, O]
        transposed=layer.fan_in_fan_out if isinstance(layer, LoraLinear) else not layer._did_swap_in_out_features,
        experts=None if isinstance(layer, LoraLinear) else layer.num_experts,
    )


def save_adapter(model: PreTrainedModel, directory: Path, *, write: bool) -> None:
    """Leave what was trained in `directory`, as `peft.PeftModel.from_pretrained(base, directory)` opens it.

    A collective; only the rank with `write`, which is rank 0, writes. Raises InputError on every rank if it cannot.
    """
    whole = {}
    for key, weight in _adapter_tensors(model).items():
        tensor = whole_tensor(weight, weight.dtype)
        if write:
            whole[key] = tensor

    def put() -> None:
        directory.mkdir()
        save_file(whole, directory / FILE, metadata={"format": "pt"})
        let_others_read(directory / FILE)
        config = copy(_config_of(model))  # not dataclasses.replace: it would make sets of our sorted lists again
        config.inference_mode = True
        config.save_pretrained(str(directory))

    on_main_rank(f"writing {directory}", put)


def _load_adapter(model: PreTrainedModel, directory: Path) -> None:
    if not (directory / FILE).is_file() or not (directory / "adapter_config.json").is_file():
        raise InputError(f"model.lora_adapter_path={directory} holds no {FILE} with its adapter_config.json.")
    ours, theirs = _config_of(model), PeftConfig.from_pretrained(str(directory))
    if not isinstance(theirs, LoraConfig):
        raise InputError(f"model.lora_adapter_path={directory} is no LoRA but {theirs.peft_type}.")
    wanted, stored = _adapter_tensors(model), StoredTensors.of_whole_tensors([directory / FILE])
    if str(theirs.init_lora_weights).startswith(REWRITES_BASE):
        raise InputError(
            f"model.lora_adapter_path={directory} began as {theirs.init_lora_weights}, which changed the model beneath "
            "it; convert it to plain LoRA with peft's save_pretrained(path_initial_model_for_weight_conversion=...)."
        )
    problems = [
        f"{key} is {getattr(theirs, field)!r} there and {getattr(ours, field)!r} here"
        for field, key in _what_makes_an_adapter()
        if _as_stored(getattr(theirs, field)) != _as_stored(getattr(ours, field))
    ]
    if missing := sorted(wanted.keys() - stored.parts.keys()):
        problems.append(f"it lacks {few(missing)}")
    if unexpected := sorted(stored.parts.keys() - wanted.keys()):
        problems.append(
            "model.target_modules, model.target_parameters and model.modules_to_save leave out its " + few(unexpected)
        )
    if not problems:
        problems = [f"{key} has another shape" for key in wanted if stored.shape(key) != tuple(wanted[key].shape)]
    if problems:
        raise InputError(
            f"model.lora_adapter_path={directory} is another adapter than the one configured:\n  "
            + "\n  ".join(problems[:MAX_NAMES_SHOWN])
        )
    stored.copy_into(wanted)
    trained_on, here = (str(config.base_model_name_or_path or "") for config in (theirs, ours))
    if trained_on and Path(trained_on).name != Path(here).name:
        log.warning("%s was trained on %s and now changes %s: is that the same model?", directory, trained_on, here)


def _what_makes_an_adapter() -> list[tuple[str, str]]:
    """Return (field of LoraConfig, our key) of all that two adapters must share, beside the names of their tensors."""
    names = {"r": "lora_rank", "lora_alpha": "lora_alpha", "use_rslora": "use_rslora", "use_dora": "use_dora"}
    where_from = {"base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version", "auto_mapping"}
    which_modules = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"}
    free = where_from | which_modules | {"target_parameters", "lora_dropout", "init_lora_weights"}
    return [
        (field.name, f"model.{names[field.name]}" if field.name in names else field.name)
        for field in fields(LoraConfig)
        if field.name not in free
    ]


def _as_stored(value: object) -> object:
    """Return the value as a JSON file gives it back: peft writes sets, and reads lists."""
    return sorted(value) if isinstance(value, set | list | tuple) else value


def _adapter_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Everything that trains, by its key in an adapter file."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    adapters = get_peft_model_state_dict(model, state_dict=trained, adapter_name=NAME, save_embedding_layers=False)
    kept = {name: weight for name, weight in trained.items() if stored_name(name)}
    spelling = vars(model)["adapter_spelling"]

    def spelled(name: str) -> str:
        module, part, rest = name.rpartition(".lora_")
        return f"{spelling.get(module, module)}{part}{rest}"

    return {f"{PREFIX}{spelled(name)}": weight for name, weight in (adapters | kept).items()}


def _spelled_for_peft(model: PreTrainedModel, config: LoraConfig, names: Sequence[str]) -> dict[str, str]:
    """Return the modules whose adapters peft finds under the name that model directories use, not the model's own.

    peft renames what it reads as transformers renames old weights. Some of these patterns match new names, too, and
    spoil them (laguna's shared_experts). To be called before the model is sharded, which hides its class.
    """

    def lost(spelling: dict[str, str]) -> list[str]:
        keys = {f"{PREFIX}{spelling[name]}.lora_A.weight": torch.empty(1, 1, device="meta") for name in spelling}
        found = convert_peft_adapter_state_dict_for_transformers(model, config, keys, NAME)
        return [name for name in spelling if not any(key.startswith(f"{PREFIX}{name}.lora_A.") for key in found)]

    old = {}
    for name in lost({name: name for name in names}):
        reverted = revert_weight_conversion(model, {f"{name}.weight": torch.empty(1, 1, device="meta")})
        old[name] = next(iter(reverted)).removesuffix(".weight")
    if old and (unnamed := lost(old)):
        raise InputError(
            f"model.target_modules, model.target_parameters: peft would not find the adapters of {few(unnamed)} again "
            f"in an adapter file of {class_name(model)}; leave them out."
        )
    return old


def _config_of(model: PreTrainedModel) -> LoraConfig:
    return model.peft_config[NAME]  # pyright: ignore[reportIndexIssue, reportReturnType]


def _adapted_modules(model: PreTrainedModel) -> dict[str, LoraLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def _adapted_experts(model: PreTrainedModel) -> dict[str, ParamWrapper]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ParamWrapper)}


def _weight_of_experts(name: str, layer: ParamWrapper) -> str:
    """Return what a model directory calls the parameter that a wrapper of this name adapts."""
    weight = stored_name(f"{name}.{layer.parameter_name}")
    assert weight is not None, f"{name} is a part of an adapter"
    return weight


def _weight(module: torch.nn.Module) -> torch.Tensor:
    assert isinstance(module.weight, torch.Tensor)
    return module.weight


def _say_what_trains(model: PreTrainedModel, modules: int, adapted_experts: Sequence[str]) -> None:
    total = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    log.info(
        "LoRA: %s of %s parameters train (%.2f %%), adapters on %d modules%s",
        f"{trained:,}",
        f"{total:,}",
        100 * trained / total,
        modules,
        f" and on {len(adapted_experts)} parameters of experts" if adapted_experts else "",
    )
    if experts := [name for name in parameters_of_experts(model) if name not in adapted_experts]:
        log.info(
            "LoRA: experts are no linear modules and get adapters by model.target_parameters; %s stay frozen",
            few(experts),
        )
    linear = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    if dense := [name for name in linear if is_expert_to_peft(model, name)]:
        log.info("LoRA: peft takes dense layers for experts where they share a name; %s stay frozen", few(dense))
