"""Check the keys of group `model` against each other, and the directory that model.partial_pretrain names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.config.checks.packages import is_importable
from sft.config.problems import from_here, shown
from sft.config.schema import ModelConfig

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def model_problems(model: ModelConfig, needs_weights: bool = True) -> Iterator[str]:
    """List the problems of the `model` keys with which the run cannot start."""
    if complaint := _complaint_about_model(model.partial_pretrain, needs_weights, model.dequantise):
        yield f"model.partial_pretrain={shown(model.partial_pretrain)} {complaint}"
    if model.revision and Path(model.partial_pretrain).is_dir():
        yield (
            f"model.revision={shown(model.revision)} would be ignored: model.partial_pretrain="
            f"{shown(model.partial_pretrain)} is a directory; leave the revision out."
        )
    if model.external_lib and not is_importable(model.external_lib):
        yield (
            f"model.external_lib={shown(model.external_lib)} cannot be imported; "
            "install it, put its directory on PYTHONPATH, or set null."
        )
    yield from _lora_problems(model)


def model_warnings(model: ModelConfig) -> Iterator[str]:
    """List the `model` keys that would have another effect than their names suggest; the run can start."""
    fsdp = model.fsdp_config
    if model.strategy == "fsdp":
        yield "model.strategy=fsdp: the same as fsdp2."
    if fsdp.offload_params and not fsdp.cpu_offload:
        yield (
            "model.fsdp_config.offload_params=true: the same as cpu_offload=true (parameters, gradients and optimizer "
            "state live in CPU memory)."
        )
    directory = Path(model.partial_pretrain)
    if model.dequantise and (directory / "config.json").is_file() and not quantisation_of(directory):
        yield "model.dequantise=true has no effect: the model is not quantised."
    if (directory / "adapter_config.json").is_file():
        yield (
            f"model.partial_pretrain={shown(model.partial_pretrain)} holds an adapter beside the model; the model is "
            "trained without it. To go on training the adapter: model.lora_adapter_path."
        )
    if model.gradient_checkpointing_kind != "full" and not model.enable_gradient_checkpointing:
        yield (
            f"model.gradient_checkpointing_kind={model.gradient_checkpointing_kind} has no effect: "
            "model.enable_gradient_checkpointing=false."
        )


def _lora_problems(model: ModelConfig) -> Iterator[str]:
    start = model.init_lora_weights
    if not model.lora_rank:
        kinds = ("use_rslora", "use_dora", "modules_to_save", "target_parameters")
        for key in ("lora_adapter_path", "lora_dropout", *kinds):
            if value := getattr(model, key):
                yield f"model.{key}={shown(value)} would be ignored: model.lora_rank=0 trains no adapter; set the rank."
        if start is not True:
            yield f"model.init_lora_weights={shown(start)} would be ignored: model.lora_rank=0; set the rank."
        if model.base_dtype != "bf16":
            yield (
                f"model.base_dtype={model.base_dtype} is for what LoRA freezes, and model.lora_rank=0 trains every "
                "weight; set the rank."
            )
        return
    if start not in (True, "gaussian"):
        yield (
            f"model.init_lora_weights={shown(start)} is none of true and gaussian. Not built: orthogonal; pissa, "
            "olora, corda, loftq, lora_ga and eva, which need whole base weights, or data; false, which begins "
            "elsewhere than at the model."
        )
    elif model.lora_adapter_path and start is not True:
        yield f"model.init_lora_weights={shown(start)} would be ignored: model.lora_adapter_path has the weights."
    if model.base_dtype == "nf4" and model.use_dora:
        yield "model.use_dora=true needs the norms of whole weights, and model.base_dtype=nf4 has none; leave one out."
    if not model.target_modules and not model.target_parameters:
        yield "model.target_modules=null and model.target_parameters=null leave nothing to adapt; name one of them."
    if model.target_parameters:
        yield from _problems_of_adapted_experts(model)
    if isinstance(model.target_modules, str):
        try:
            re.compile(model.target_modules)
        except re.error as error:
            yield f"model.target_modules={shown(model.target_modules)} is no regular expression ({error})."
    if model.lora_adapter_path and not Path(model.lora_adapter_path).is_dir():
        yield (
            f"model.lora_adapter_path={shown(model.lora_adapter_path)} is no directory"
            f"{from_here(Path(model.lora_adapter_path))}; give the one that holds adapter_config.json."
        )


def _problems_of_adapted_experts(model: ModelConfig) -> Iterator[str]:
    """peft adds A and B to a weight before its module computes: there is nothing else that they could be put around."""
    for key, reason in {
        "lora_dropout": "drops inputs of adapters, and those of model.target_parameters have none of their own",
        "use_dora": "cannot be put on model.target_parameters (peft has none for matrices of experts)",
        "compile": "cannot compile what model.target_parameters exchanges in every forward",
    }.items():
        if value := getattr(model, key):
            yield f"model.{key}={shown(value)} {reason}; leave one out."
    if model.base_dtype == "nf4":
        yield (
            "model.target_parameters adds adapters to whole weights, and model.base_dtype=nf4 keeps those of experts "
            "in 4 bits; leave one out."
        )


def _complaint_about_model(model: str, needs_weights: bool, dequantise: bool) -> str | None:
    try:
        return _complaint_about_place(Path(model), model, needs_weights, dequantise)
    except OSError as error:
        return f"cannot be looked into by this user ({error.filename}: {error.strerror}); check its permissions."


def _complaint_about_place(path: Path, model: str, needs_weights: bool, dequantise: bool) -> str | None:
    if path.is_file():
        return "is a file; give the directory around it."
    if not path.is_dir():
        if HUB_ID.fullmatch(model):
            return None
        return f"is neither a directory{from_here(path)} nor a hub id org/name; download the model or mend the path."
    inside = sorted(path.iterdir())
    if odd := [each.name for each in inside if each.exists() and not (each.is_file() or each.is_dir())]:
        return f"holds pipes, sockets or devices, which nobody can read to their end ({_few(odd)}); take them out."
    if base := _base_of_adapter(path):
        return (
            f"is an adapter, not a model; give the model that it was trained on ({base}), and the adapter as "
            "model.lora_adapter_path."
        )
    found = f"found {_few([each.name for each in inside])}"
    if not (path / "config.json").is_file():
        return f"has no config.json ({found}); give a directory that save_pretrained wrote."
    if complaint := complaint_about_quantisation(quantisation_of(path), dequantise):
        return complaint
    if not needs_weights or any(path.glob("*.safetensors")):
        return None
    return f"has no *.safetensors ({found}); convert other weights with save_pretrained, they can carry code."


def _base_of_adapter(directory: Path) -> str | None:
    """Return the model that an adapter of peft in `directory` belongs to; None where there is none, or a model, too."""
    weights = {path.name for path in directory.glob("*.safetensors")}
    try:
        settings = json.loads((directory / "adapter_config.json").read_text())
    except (OSError, ValueError):
        return None
    is_adapter = isinstance(settings, dict) and weights <= {"adapter_model.safetensors"}
    return str(settings.get("base_model_name_or_path") or "which it does not say") if is_adapter else None


def quantisation_of(directory: Path) -> dict[str, Any]:
    """Return what config.json says of how the weights of a directory are quantised; {} where they are not."""
    try:
        config = json.loads((directory / "config.json").read_text())
        return config.get("quantization_config") or config.get("text_config", {}).get("quantization_config") or {}
    except (OSError, ValueError, AttributeError):
        return {}  # whoever reads it next says what is wrong with it


def complaint_about_quantisation(settings: Mapping[str, Any], dequantise: bool) -> str | None:
    """Say why a model that is quantised as `settings` tell cannot be trained; None if it can."""
    if not settings:
        return None
    method = settings.get("quant_method", "by an unknown method")
    bits = settings.get("bits") or (4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None)
    how = f"is quantised ({method}{f', {bits} bit' if bits else ''})"
    if method == "mxfp4" or (method == "fp8" and settings.get("weight_block_size")):
        widened = "set model.dequantise=true: it is read, trained and written in bf16."
        return None if dequantise else f"{how}; {widened}"
    return (
        f"{how}, which rounded its weights, and the way back is not built: take the model it was made of. "
        "(model.dequantise=true widens mxfp4 and fp8 in blocks.)"
    )


def _few(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
