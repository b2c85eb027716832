"""From a model directory to a model on the mesh: a skeleton without memory, then sharded, then filled."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sft.config import FsdpConfig, ModelConfig, SftConfig
from sft.model.attention import Choice, prove_causality, prove_separation, share_rows
from sft.model.dequantise import say_how_widened
from sft.model.frozen import freeze
from sft.model.liger import use_liger_kernels
from sft.model.load import build_skeleton, decoder_layers, load_weights
from sft.model.logits import learn_logit_form, note_loss_kernel, refuse_loss_kernel
from sft.model.precision import fp32_modules, say_what_is_rounded
from sft.model.pretrained import load_config
from sft.model.quantised import Chosen, choose, quantise
from sft.model.randomness import say_what_is_drawn
from sft.model.routers import watch_routers
from sft.model.text_part import parts_beside_text
from sft.model.vocabulary import grow_vocabulary
from sft.parallel.activation import checkpoint_activations, compile_layers
from sft.parallel.device import why_one_thread
from sft.parallel.fsdp import Sharding, shard
from sft.parallel.mesh import Mesh
from sft.parallel.offload import offload_activations
from sft.parallel.ulysses import exchange_heads
from sft.parallel.world import World, log

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_bare_model(
    config: SftConfig, source: Path, attention: Choice, *, tokens: int = 0
) -> tuple[PreTrainedModel, bool]:
    """Return (the model on the meta device, with LoRA's adapters inside; whether its vocabulary had to grow)."""
    trust, fsdp, adapters = config.model.trust_remote_code, config.model.fsdp_config, adapter_settings(config.model)
    master_dtype, compute_dtype = DTYPES[fsdp.model_dtype], DTYPES[fsdp.compute_dtype]
    model_config = load_config(source, trust_remote_code=trust, dequantise=config.model.dequantise)
    say_how_widened(source)
    say_what_is_drawn(model_config)
    grown = grow_vocabulary(model_config, tokens)
    model = build_skeleton(
        model_config,
        attention=attention,
        dtype=compute_dtype if adapters else master_dtype,  # what LoRA freezes never moves: no master copy
        trust_remote_code=trust,
    )
    chosen: list[Chosen] = []
    if adapters:
        from sft.model import lora, lora_targets  # need peft, which other runs do not

        if config.model.base_dtype == "nf4":
            chosen = choose(model, decoder_layers(model), lora_targets.plain_linear(model))
        name = str(source.resolve()) if Path(config.model.partial_pretrain).is_dir() else config.model.partial_pretrain
        lora.add_adapters(model, base=name, dtype=master_dtype, **adapters)
    if line := freeze(model, config.model.frozen, config.model.train_only):
        log.info("%s", line)
    if config.model.base_dtype == "nf4" and adapters:
        quantise(model, chosen, recompute_experts=not config.model.enable_gradient_checkpointing)
    say_what_is_rounded(model, compute_dtype)
    watch_routers(model, config.model.router_aux_loss)
    learn_logit_form(model)  # with its adapters: one on the LM head makes it another head
    note_loss_kernel(model, config.model.loss_kernel)
    return model, grown


def sharding_of(fsdp: FsdpConfig, *, reduce_once: bool = True) -> Sharding:
    """Return how model.fsdp_config spreads the weights. reduce_once: reduce gradients after the last micro-batch."""
    return Sharding(
        DTYPES[fsdp.compute_dtype],
        offload=fsdp.cpu_offload or fsdp.offload_params,
        reshard_after_forward=fsdp.reshard_after_forward,
        reduce_once=reduce_once,
        min_group_params=fsdp.wrap_policy.min_num_params,
    )


def place(
    model: PreTrainedModel,
    config: SftConfig,
    source: Path,
    mesh: Mesh,
    sharding: Sharding,
    world: World,
    *,
    grown: bool,
) -> None:
    """Shard the skeleton over mesh.fsdp and fill it from `source`; no rank ever holds all of it.

    grown: the vocabulary of the skeleton is larger than that of the files
    """
    refuse_loss_kernel(config.model.loss_kernel, world.device)
    layers = decoder_layers(model)
    if sharding.offload and world.device.type == "cpu":
        log.info("model.fsdp_config.cpu_offload=true: without a GPU all of the model is in CPU memory anyway.")
    elif sharding.offload and (reason := why_one_thread()):
        log.warning("model.fsdp_config.cpu_offload=true: the optimizer runs on the CPU, and %s", reason)
    if config.model.use_liger:
        use_liger_kernels(model, world.device)
    if mesh.sp_size > 1:
        exchange_heads(model, mesh.sp_group)
        share_rows(model, mesh.sp_group)
    if config.model.enable_gradient_checkpointing:
        checkpoint_activations(layers, selective=config.model.gradient_checkpointing_kind == "selective")
    if config.model.compile:
        if world.device.type == "cpu":
            log.warning("model.compile=true: on a CPU it costs minutes at the start and wins little.")
        named = str(model.config._attn_implementation)
        if config.use_remove_padding and ("by_sample" in named or "in_blocks" in named):
            log.warning(
                "model.compile=true: attention by sdpa or blocked on packed rows is compiled again for every number of "
                "samples in a row; another model.attn_implementation is not."
            )
        compile_layers(layers)
    if config.model.activation_offload:
        if world.device.type == "cpu":
            log.info("model.activation_offload=true: without a GPU all activations are in CPU memory anyway.")
        offload_activations(layers)
    apart = list(parts_beside_text(model).values())
    shard(model, layers, mesh.fsdp, sharding, ends=own_ends(model), apart=apart, in_fp32=fp32_modules(model))
    load_weights(model, source, world.device, offload=sharding.offload, grown_vocabulary=grown)
    if config.model.lora_rank:
        from sft.model import lora

        start = config.model.init_lora_weights
        lora.start_adapters(model, seed=config.trainer.seed, start=start, adapter=config.model.lora_adapter_path)
    prove_causality(model, world.device)
    prove_separation(model, world.device)


def own_ends(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return embedding and LM head, those of the two whose weights no other module has: neither is where they are tied.

    With adapters inside, an end is no group of its own either: what its forward reads, and when, is up to peft.
    """
    owners = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    return [
        end
        for end in (model.get_input_embeddings(), model.get_output_embeddings())
        if isinstance(end, torch.nn.Embedding | torch.nn.Linear)
        and all(owners[id(weight)] == 1 for weight in end.parameters())
    ]


def adapter_settings(model: ModelConfig) -> dict[str, Any]:
    """Return what the configuration says about adapters, in types that JSON keeps; empty without LoRA."""
    if not model.lora_rank:
        return {}
    return {
        "rank": model.lora_rank,
        "alpha": model.lora_alpha,
        "targets": model.target_modules if isinstance(model.target_modules, str) else list(model.target_modules or ()),
        "dropout": model.lora_dropout,
        "use_rslora": model.use_rslora,
        "use_dora": model.use_dora,
        "modules_to_save": list(model.modules_to_save or ()),
        **({"target_parameters": list(model.target_parameters)} if model.target_parameters else {}),
    }


def frozen_settings(model: ModelConfig) -> dict[str, list[str]] | None:
    """Return which parameters the configuration freezes, in types that JSON keeps; None without."""
    asked = {"frozen": list(model.frozen), "train_only": list(model.train_only)}
    return asked if any(asked.values()) else None
