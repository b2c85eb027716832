"""Turn a checkpoint into a model directory, an adapter or a .pt file, whole or not at all."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sft.checkpoint import MODEL_DIR
from sft.checkpoint.optimizer import keys_of
from sft.checkpoint.state import fill, stored_state
from sft.config.secrets import without_secrets
from sft.data.chat.encode import stop_token_ids
from sft.data.chat.tokenizer import template_fingerprint
from sft.errors import InputError
from sft.export.saved import Saved, find_saved
from sft.files import sync_directory, sync_tree
from sft.model.attention import Available
from sft.model.conversion import conversion_of
from sft.model.dequantise import stored_weights
from sft.model.load import build_skeleton, refuse_misfits
from sft.model.names import named_weights, stored_name, trained_weights
from sft.model.place import build_bare_model
from sft.model.pretrained import load_config
from sft.model.tokenizer import load_tokenizer
from sft.model.write.check import check
from sft.model.write.directory import ADAPTER_DIR, Speech, export
from sft.model.write.growing_file import DTYPES
from sft.model.write.side_files import copy_side_files, set_dtype, stop_tokens_of
from sft.model.write.weights import Gather, check_room, convert_weights, merged_weights
from sft.parallel.world import World, process_group
from sft.train.inputs import attention_of
from sft.train.reading import open_tokenizer, supervision_of

ALONE = World(rank=0, size=1, local_rank=0)
NAMED = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}


def export_after(source: Path, form: str, *, dtype: str | None, out: Path | None, base: Path | None) -> str:
    """Write what `python -m sft.export` was asked for; returns a sentence about it. Raises InputError.

    form: hf, adapter or pt
    """
    if form == "adapter" and dtype is not None:
        raise InputError(f"--dtype={dtype} is for hf and pt: an adapter keeps the dtype it was trained in.")
    saved = find_saved(source)
    target = _target(saved, form, out)
    wanted = NAMED[dtype] if dtype else None

    def write(aside: Path) -> None:
        if form == "adapter":
            _write_adapter(saved, aside, base)
        elif form == "pt":
            _write_pt(saved, aside, base, wanted)
        else:
            _write_model(saved, aside, base, wanted)

    with process_group(ALONE):
        _whole_or_absent(target, write)
    return f"{target}: step {saved.step} of {saved.run_name}"


def _target(saved: Saved, form: str, out: Path | None) -> Path:
    step = "final" if saved.is_final else f"step{saved.step}"
    names = {"hf": f"-step{saved.step}", "adapter": f"-step{saved.step}-adapter", "pt": f"-sft_{step}.pt"}
    name = f"{saved.run_name}{names[form]}"
    target = out or Path(name)
    if form == "pt" and target.is_dir():
        target = target / name
    if target.exists():
        raise InputError(f"{target} exists; give another --out, or remove it first.")
    if not target.absolute().parent.is_dir():
        raise InputError(f"--out {target}: {target.absolute().parent} is no directory; make it first.")
    return target


def _whole_or_absent(target: Path, write: Callable[[Path], None]) -> None:
    aside = target.with_name(f".{target.name}.partial")

    def clear() -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)

    clear()
    try:
        write(aside)
        sync_tree(aside)
        aside.rename(target)
        sync_directory(target.absolute().parent)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror or error}); nothing was.") from error
    finally:
        clear()


def _write_model(saved: Saved, target: Path, base: Path | None, dtype: torch.dtype | None) -> None:
    if saved.state is not None and (saved.model is None or dtype is not None):
        model, source = _rebuilt(saved, base)
        speech = _speech(saved, source)
        export(model, source, target, speech=speech, is_main=True, gather=_gather(saved, model), dtype=dtype)
        return
    assert saved.model is not None
    target.mkdir()
    copy_side_files(saved.model, target)
    shutil.copyfile(saved.model / "generation_config.json", target / "generation_config.json")
    if (saved.model / ADAPTER_DIR).is_dir():
        shutil.copytree(saved.model / ADAPTER_DIR, target / ADAPTER_DIR)
    convert_weights(saved.model, target, dtype)
    if dtype is not None:
        set_dtype(target, dtype)
    trust = saved.config.model.trust_remote_code
    check(
        target,
        saved.model,
        tokenizer=load_tokenizer(saved.model, trust_remote_code=trust),
        stop_token_ids=stop_tokens_of(saved.model),
        template_options=saved.config.data.apply_chat_template_kwargs,
        dtype=dtype,
        trust_remote_code=trust,
    )


def _write_adapter(saved: Saved, target: Path, base: Path | None) -> None:
    if saved.model is not None and (saved.model / ADAPTER_DIR).is_dir():
        shutil.copytree(saved.model / ADAPTER_DIR, target)
    elif not saved.config.model.lora_rank:
        raise InputError(f"{saved.run_name} trained all weights (model.lora_rank=0), no adapter; use --format hf.")
    elif saved.state is None:
        raise InputError(
            f"step {saved.step} of {saved.run_name} has neither state nor {ADAPTER_DIR}; take another step."
        )
    else:
        from sft.model.lora import save_adapter

        model, _ = _rebuilt(saved, base)
        save_adapter(model, target, write=True)


def _write_pt(saved: Saved, target: Path, base: Path | None, dtype: torch.dtype | None) -> None:
    """Write one object for torch.load: the whole model is in memory while it is written."""
    optimizer_state = {}
    if saved.state is not None:
        model, source = _rebuilt(saved, base)
        trained = dtype or NAMED[saved.config.model.fsdp_config.model_dtype]
        model_state = _model_state(saved, model, source, trained)
        stored = stored_state({}, saved.state)
        for remembered in sorted(keys_of(stored)):
            keys = [key for key in stored.parts if key.startswith(f"{remembered}/")]
            optimizer_state[remembered] = {
                key.removeprefix(f"{remembered}/"): stored.read_whole(key, DTYPES[stored.dtypes[key]]) for key in keys
            }
        optimizer_state["updates"] = saved.manifest["state"]["updates"]
    else:
        model_state = _stored_model_state(saved, dtype)
    remembered = [state for state in optimizer_state.values() if isinstance(state, dict)]
    tensors = [*model_state.values(), *(tensor for state in remembered for tensor in state.values())]
    check_room(target.parent, sum(tensor.nbytes for tensor in tensors))
    content = {
        "model_state": model_state,
        "optimizer_state": optimizer_state,
        "config": without_secrets(asdict(saved.config)),
        "step": saved.step,
        "run_name": saved.run_name,
    }
    torch.save(content, target)
    torch.load(target, weights_only=True, mmap=True)  # read again before it gets its name


def _model_state(saved: Saved, model: PreTrainedModel, source: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the weights for load_state_dict: adapters merged, a tied weight under both of its names."""
    whole = dict(merged_weights(model, source, gather=_gather(saved, model), dtype=dtype))
    return whole | _second_names(whole, model)


def _stored_model_state(saved: Saved, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint without state, for load_state_dict, from the model in it."""
    assert saved.model is not None
    trust = saved.config.model.trust_remote_code
    skeleton = build_skeleton(
        load_config(saved.model, trust_remote_code=trust),
        attention=attention_of(saved.config, saved.model, Available("cpu"), wanted="auto"),
        dtype=dtype or torch.float32,
        trust_remote_code=trust,
    )
    stored = stored_weights(saved.model)
    conversion = conversion_of(skeleton, stored, inverse=False)
    refuse_misfits(skeleton, saved.model, conversion)
    whole = {
        name: weight.to(dtype or weight.dtype)
        for group in conversion.groups
        for name, weight in conversion.convert(group, stored.read).items()
    }
    return whole | _second_names(whole, skeleton)


def _second_names(whole: dict[str, torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return what load_state_dict also asks for: weights that are tied to one of `whole`, by their own names."""
    first_names = {id(weight): name for name, weight in named_weights(model).items()}
    names = {
        stored_name(name): first_names.get(id(weight)) for name, weight in model.state_dict(keep_vars=True).items()
    }
    return {name: whole[first] for name, first in names.items() if name and name not in whole and first in whole}


def _rebuilt(saved: Saved, base: Path | None) -> tuple[PreTrainedModel, Path]:
    """Return (the run's model without memory, except its adapters, which are filled; the base model's directory)."""
    assert saved.state is not None
    if saved.config.model.external_lib:
        importlib.import_module(saved.config.model.external_lib)
    source = saved.base(base)
    _, _, new_tokens = open_tokenizer(saved.config, source)
    attention = attention_of(saved.config, source, Available("cpu"), wanted="auto")
    model, _ = build_bare_model(saved.config, source, attention, tokens=max(new_tokens.values(), default=-1) + 1)
    model.tie_weights()
    if saved.config.model.lora_rank:
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                if weight.requires_grad:
                    setattr(module, name, torch.nn.Parameter(torch.empty_like(weight, device="cpu")))
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        fill({f"model/{name}": weight for name, weight in trained.items()}, saved.state)
    return model, source


def _gather(saved: Saved, model: PreTrainedModel) -> Gather:
    """Yield the weights of the state, one at a time."""
    assert saved.state is not None
    wanted = {f"model/{name}": weight for name, weight in trained_weights(model).items()}
    stored = stored_state(wanted, saved.state)
    return lambda name, dtype: stored.read_whole(f"model/{name}", dtype)


def _speech(saved: Saved, source: Path) -> Speech:
    config = saved.config
    tokenizer, chat_template, new_tokens = open_tokenizer(config, source)
    options = config.data.apply_chat_template_kwargs
    if template_fingerprint(tokenizer, options) != saved.manifest["fingerprint"]["template"]:
        raise InputError(
            f"data.chat_template={config.data.chat_template or 'null'} with the tokenizer of {source} is another "
            f"template now than the one {saved.run_name} was trained with; put the file back as it was (checkpoints "
            f"of the run that hold a model have it in {MODEL_DIR}/)."
        )
    return Speech(
        tokenizer=tokenizer,
        stop_token_ids=stop_token_ids(tokenizer, supervision_of(config), **options),
        chat_template=chat_template,
        new_tokens=new_tokens,
        template_options=options,
        trust_remote_code=config.model.trust_remote_code,
    )
