"""The keys of verl's SFT trainers, those of today's `sft_trainer` and of the removed `fsdp_sft_trainer`."""

from __future__ import annotations

from typing import Any

from sft.config.foreign import NOTHING, Foreign, Reading, choice, is_count, no_effect, not_offered, only

TODAYS_GROUPS = {"engine=fsdp", "engine=fsdp2", "optim=fsdp", "model=hf_model"}
"""Group files of today's verl. They mean what is chosen here anyway."""

ALIASES = {
    "data.micro_batch_size": "data.micro_batch_size_per_gpu",
    "data.max_token_len_per_gpu": "data.max_tokens_per_gpu",
    "data.tools_key": "data.multiturn.tools_key",
    "data.enable_thinking_key": "data.multiturn.enable_thinking_key",
    "model.path": "model.partial_pretrain",
    "model.enable_activation_offload": "model.activation_offload",
    "model.lora.rank": "model.lora_rank",
    "model.lora.alpha": "model.lora_alpha",
    "model.lora.dropout": "model.lora_dropout",
    "model.lora.target_modules": "model.target_modules",
    "model.lora.adapter_path": "model.lora_adapter_path",
    "model.use_remove_padding": "use_remove_padding",
    "model.custom_chat_template": "data.chat_template",
    "engine.strategy": "model.strategy",
    "engine.model_dtype": "model.fsdp_config.model_dtype",
    "engine.dtype": "model.fsdp_config.compute_dtype",
    "engine.reshard_after_forward": "model.fsdp_config.reshard_after_forward",
    "engine.wrap_policy.min_num_params": "model.fsdp_config.wrap_policy.min_num_params",
    "optim.lr_warmup_steps_ratio": "optim.warmup_steps_ratio",
    "optim.lr_scheduler_type": "optim.lr_scheduler",
    "optim.warmup_style": "optim.lr_scheduler",
    "checkpoint.async_save": "trainer.async_save",
    "trainer.checkpoint.async_save": "trainer.async_save",
    "trainer.dcp_save_interval": "trainer.save_freq",
}

LIMITS_OF_A_TURN = ("data.max_prompt_length", "data.max_response_length")
"""Together they are data.max_length."""
SHARD_GROUP = "engine.fsdp_size"
"""Ranks that share the weights; here their number follows from model.fsdp_config.dp_replicate."""

TODAYS_DEFAULTS: dict[str, Any] = {
    "optim.lr": 1e-3,
    "optim.lr_scheduler": "constant",
    "optim.warmup_steps_ratio": 0.0,
    "optim.betas": [0.9, 0.999],
    "use_remove_padding": True,
    "data.max_tokens_per_gpu": 8192,
    "model.enable_gradient_checkpointing": True,
}
"""What today's verl takes where its command says nothing, as far as it differs from conf/."""


def _sp(value: Any) -> Reading:
    splits_rows = type(value) is int and value > 1
    return Reading({"ulysses_sequence_parallel_size": value}, {"use_remove_padding": True} if splits_rows else {})


def _dynamic(value: Any) -> Reading | None:
    match value:
        case True:
            return Reading({}, {"data.max_tokens_per_gpu": TODAYS_DEFAULTS["data.max_tokens_per_gpu"]})
        case False | None:
            return NOTHING
    return None


def _offload(value: Any) -> Reading | None:
    if value is True:
        return Reading({"model.fsdp_config.cpu_offload": True})
    return NOTHING if value in (False, None) else None


def _positive(key: str, reason: str) -> Foreign:
    """Describe a number that counts only if it is above 0."""

    def reads(value: Any) -> Reading | None:
        if type(value) is not int:
            return NOTHING if value is None else None
        return Reading({key: value}) if value > 0 else NOTHING

    return Foreign(reads, reason)


def _resume_path(value: Any) -> Reading | None:
    if value is None:
        return NOTHING
    return Reading({"trainer.resume_from_path": value}, {"trainer.resume_mode": "resume_path"})


def _is_list(value: Any) -> bool:
    return value is None or isinstance(value, list)


QUANTISED = "what LoRA freezes is kept in bf16, or in 4 bits: model.base_dtype=nf4"

FOREIGN: dict[str, Foreign] = {
    "data.messages_key": Foreign(
        lambda value: Reading({"data.multiturn.messages_key": value}, {"data.multiturn.enable": True})
    ),
    "data.use_dynamic_bsz": Foreign(_dynamic, "data.max_tokens_per_gpu=null packs by samples, a number by tokens"),
    "data.shuffle": Foreign(lambda value: NOTHING if value in (True, None) else None, "every epoch is shuffled"),
    "engine.ulysses_sequence_parallel_size": Foreign(_sp),
    "engine.param_offload": Foreign(_offload, "nothing is moved to the CPU"),
    "engine.optimizer_offload": Foreign(_offload, "nothing is moved to the CPU"),
    "engine.offload_policy": Foreign(_offload, "nothing is moved to the CPU"),
    "optim.lr_warmup_steps": _positive("optim.warmup_steps", "optim.warmup_steps_ratio says how long the warm-up is"),
    "optim.total_training_steps": _positive("trainer.total_training_steps", "the trainer's length of the run counts"),
    "trainer.resume_path": Foreign(_resume_path, "trainer.resume_mode says where a run begins"),
    **only(lambda value: value is None or isinstance(value, str),
           "use_remove_padding decides how samples are padded", "data.pad_mode"),
    **not_offered("files are read where they are", "data.use_shm"),
    **not_offered("each rank reads only its own slices of the weights", "model.use_shm"),
    **dict.fromkeys(("load_in_4bit", "model.load_in_4bit"),
                    choice({True: {"model.base_dtype": "nf4"}, False: {}}, "model.base_dtype=nf4 says it")),
    **not_offered(QUANTISED, "load_in_8bit model.load_in_8bit"),
    **only(_is_list, "a checkpoint is always whole", "checkpoint.save_contents trainer.checkpoint.save_contents"),
    **only(_is_list, "resuming restores everything", "checkpoint.load_contents trainer.checkpoint.load_contents"),
    **no_effect("it is about Megatron's checkpoints", "checkpoint.mbridge_config"),
    **no_effect("it is about Megatron's adapters", "model.lora.merge model.lora.dropout_position model.lora.dtype "
                "model.lora.lora_A_init_method model.lora.lora_B_init_method model.lora.a2a_experimental "
                "model.lora.freeze_vision_model model.lora.freeze_vision_projection model.lora.freeze_language_model"),
    **only(lambda value: value in (None, "lora"), "adapters are LoRA's", "model.lora.type"),
    **no_effect("the classes are chosen here", "model._target_ engine._target_ optim._target_ checkpoint._target_"),
    "data.enable_thinking_default": Foreign(
        lambda value: Reading({"data.apply_chat_template_kwargs": {"enable_thinking": value}})
        if isinstance(value, bool) else NOTHING if value in (None, "none") else None,
        "data.apply_chat_template_kwargs={enable_thinking: false} sets it for all rows"),
    **no_effect("data.balance_dp_token deals samples by length", "trainer.balance_batch"),
    **not_offered("model.activation_offload and model.enable_gradient_checkpointing save memory",
                  "model.tiled_mlp.enabled"),
    **no_effect("it belongs to tiled MLPs", "model.tiled_mlp.num_shards"),
    **not_offered("weights are trained in fp32 or bf16", "engine.qat.enable"),
    **no_effect("it belongs to training for quantised weights", "engine.qat"),
    **no_effect("it is about an engine of another vendor", "engine.turbo_config"),
    **no_effect("when ranks sum their gradients follows from how the weights are sharded",
                "engine.use_no_sync_for_gradient_accumulation"),
    **no_effect("use_remove_padding decides how samples are padded",
                "engine.pad_to_length engine.pad_to_length_bucket"),
    **no_effect("the masks of every row are proven", "data.ignore_input_ids_mismatch"),
    **no_effect("tokens are cached on disk and mapped into memory", "data.dataloader_num_workers"),
    **not_offered("only text is trained", "data.image_key data.video_key data.image_patch_size"),
    **not_offered("a tokenizer and a configuration are read from model.partial_pretrain; put the files there",
                  "model.tokenizer_path model.hf_config_path"),
    **not_offered("edit config.json in a copy of the model's directory", "model.override_config"),
    **not_offered("write model.target_modules as a regular expression that leaves them out",
                  "model.exclude_modules model.lora.exclude_modules"),
    **no_effect("the loss never holds whole logits", "model.use_fused_kernels model.fused_kernel_options "
                "engine.entropy_from_logits_with_chunking engine.entropy_from_logits_chunk_size "
                "engine.entropy_checkpointing engine.use_fused_kernels"),
    **no_effect("it is about FSDP1; FSDP2 shards each parameter and prefetches by itself",
                "engine.forward_prefetch engine.use_orig_params"),
    **no_effect("it compiles verl's log-probabilities; layers are compiled by model.compile=true",
                "engine.use_torch_compile"),
    **not_offered("this is a trainer", "engine.forward_only"),
    **no_effect("trainer.seed seeds everything", "engine.seed data.seed"),
    **no_effect("on a CPU's ranks two runs are equal bit for bit", "engine.full_determinism"),
    **only(lambda value: value in (None, "AdamW", "adamw", "torch.optim"), "the optimizer is AdamW",
           "optim.optimizer optim.optimizer_impl"),
    **not_offered("the optimizer is torch's AdamW with optim.betas and optim.weight_decay",
                  "optim.override_optimizer_config"),
    **only(lambda value: value in (None, 0.5), "a cosine falls once, over the whole run", "optim.num_cycles"),
    **no_effect("step 1 of a warm-up has 1/n of the rate", "optim.zero_indexed_step"),
    **only(lambda value: value is None,
           "checkpoints are written to trainer.default_local_dir; give a directory of a mounted file system there",
           "trainer.default_hdfs_dir"),
    **only(lambda value: value in (None, "cuda", "auto"),
           "GPUs of CUDA are used where there are any (for the CPU: CUDA_VISIBLE_DEVICES='')", "trainer.device"),
    **only(is_count, "torchrun --nproc-per-node decides", "trainer.n_gpus_per_node"),
    **only(is_count, "torchrun --nnodes decides", "trainer.nnodes"),
    **not_offered("trainer.profile_steps=[10,12] records these steps (docs/performance.md)",
                  "profiler trainer.profile_interval"),
    **not_offered("heads for several tokens are not trained", "model.mtp"),
}  # fmt: skip
