"""The keys of TRL's SFTConfig, axolotl, LLaMA-Factory and open-r1's recipes: what each means here, or why nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.config.foreign import NOTHING, Foreign, Reading, as_key, choice, is_off, no_effect, not_offered, only

GROUPS = {"optim=adamw_torch", "optim=adamw_torch_fused", "optim=adamw_hf"}
"""Values of transformers' `optim` that mean AdamW, which is chosen here anyway."""

PER_DEVICE = ("per_device_train_batch_size", "micro_batch_size")
"""Samples of one rank's micro-batch. With the accumulation and the number of ranks they make the samples of a step."""

LOGGERS = {"use_wandb": "wandb", "use_mlflow": "mlflow", "use_tensorboard": "tensorboard", "use_swanlab": "swanlab",
           "use_trackio": "trackio"}  # fmt: skip


def _adam(beta: int) -> Foreign:
    """Our betas are one key; what is wanted otherwise is said by it."""
    default = (0.9, 0.999)[beta]
    return Foreign(
        lambda value: NOTHING if value in (None, (0.9, 0.95)[beta]) else None,
        f"set both at once, for example optim.betas=[0.9,0.999] ({default} is the other trainers' default)",
    )


def _packs(value: Any) -> Reading | None:
    if value is None:
        return NOTHING
    return Reading({"use_remove_padding": value}) if isinstance(value, bool) else None


def _negated(key: str, reason: str = "") -> Foreign:
    return as_key(key, lambda value: not value if isinstance(value, bool) else None, reason)


def _warmup(value: Any) -> Reading | None:
    if type(value) is int:
        return Reading({"optim.warmup_steps": value})
    if isinstance(value, float):
        return Reading({"optim.warmup_steps_ratio": value})
    return NOTHING if value is None else None


def _files(value: Any) -> list[str] | None:
    """Return the paths of axolotl's list of data sets, whose entries may say what is recognised here by itself."""
    entries = value if isinstance(value, list) else [value]
    paths = [entry.get("path") if isinstance(entry, Mapping) else entry for entry in entries]
    told = {key for entry in entries if isinstance(entry, Mapping) for key in entry} - {"path", "type", "ds_type"}
    texts = [path for path in paths if isinstance(path, str)]
    return None if told or len(texts) < len(paths) else texts


def _held_out(value: Any) -> Reading | None:
    if isinstance(value, int | float) and value > 0 and not isinstance(value, bool):
        return Reading({"data.val_fraction": value})
    return NOTHING if is_off(value) else None


def _if_true(sets: dict[str, Any], reason: str) -> Foreign:
    return Foreign(lambda value: Reading(sets) if value is True else NOTHING if is_off(value) else None, reason)


def _adds_logger(name: str) -> Foreign:
    return _if_true({"trainer.logger": ["console", name]}, "trainer.logger says where metrics go")


SAVE_STRATEGY = choice(
    {"epoch": {"trainer.save_freq": "epoch"}, "no": {"trainer.save_freq": -1}, "steps": {},
     "best": {"trainer.save_best": True}},
    "trainer.save_freq says when: steps, a part of the run (0.1), epoch, or -1 for the end only",
)  # fmt: skip
EVAL_STRATEGY = choice(
    {"epoch": {"trainer.test_freq": -1}, "no": {"trainer.test_freq": 0}, "steps": {}},
    "trainer.test_freq says when: steps, a part of the run (0.1), -1 for every epoch, 0 for never",
)
DTYPES = {"bf16": "bf16", "bfloat16": "bf16", "fp32": "fp32", "float32": "fp32"}
PRECISION = "weights are kept in model.fsdp_config.model_dtype and computed with in compute_dtype: fp32 or bf16"
ATTENTION = {"flash_attention_2": "flash_attention_2", "flash_attention_3": "flash_attention_3", "sdpa": "sdpa",
             "flex_attention": "flex", "eager": "sdpa", "auto": "auto", "fa2": "flash_attention_2",
             "disabled": "sdpa"}  # fmt: skip
OPTIMIZER = "optim.name chooses the optimizer, optim.groups a rate for some parameters"
KERNELS = "model.attn_implementation says which kernel; auto takes the fastest that is right"
OTHER_TRAINING = "this trainer fine-tunes with cross entropy; preferences and rewards come after it (docs/rl.md)"
LOADER = "rows are tokenised once and mapped into memory; batches are prepared ahead by a thread"
TRACKING = "set it in the environment, as the tracker's own documentation says"
ROWS = "columns are named by data.prompt_key, data.response_key, data.multiturn.messages_key (docs/data.md)"
TOKENS = "the tokenizer's files in model.partial_pretrain say it; edit a copy of the directory"
SHARDING = "every run is sharded by FSDP2; model.fsdp_config has its keys"
ADAPTERS = "of adapters there is LoRA, with rsLoRA and DoRA: the keys model.lora_* (docs/config.md)"
HUB = "a push is described by trainer.hub_model_id and trainer.hub_private"
MULTIMODAL = "only text is trained"

ENTRIES = "data.mixture takes entries with keys of their own (docs/data.md)"
LOSSES = "of losses there are cross entropy, optim.loss=dft and optim.loss=eaft, optim.label_smoothing and optim.z_loss"

FOREIGN: dict[str, Foreign] = {
    # lengths and batches
    "packing": Foreign(_packs, "use_remove_padding=true puts whole samples end to end"),
    "sample_packing": Foreign(_packs, "use_remove_padding=true puts whole samples end to end"),
    "padding_free": Foreign(_packs, "use_remove_padding=true puts whole samples end to end"),
    "neat_packing": Foreign(_packs, "use_remove_padding=true puts whole samples end to end"),
    "batch_flattening": Foreign(_packs, "use_remove_padding=true puts whole samples end to end"),
    "excess_length_strategy": choice(
        {"drop": {"data.truncation": "drop"}, "truncate": {"data.truncation": "right"},
         "raise": {"data.truncation": "error"}}, "data.truncation says it: error, left, right or drop"),
    "truncation_mode": choice({"keep_start": {"data.truncation": "right"}, "keep_end": {"data.truncation": "left"}},
        "data.truncation says it: error, left, right or drop"),
    "datasets": as_key("data.train_files", _files, ENTRIES),
    "test_datasets": as_key("data.val_files", _files, ENTRIES),
    **dict.fromkeys(("val_set_size", "val_size"), Foreign(_held_out, "data.val_fraction=0.05 holds rows out")),
    "group_by_length": _if_true({"data.balance_dp_token": True}, "data.balance_dp_token deals samples by length"),
    "curriculum_sampling": _if_true({"data.curriculum": "tokens"}, "data.curriculum orders the first epochs"),
    # what is trained
    "assistant_only_loss": choice({True: {}, False: {"data.train_on": "all"}}, "data.train_on says what is trained"),
    "completion_only_loss": choice({True: {}, False: {"data.train_on": "all"}}, "data.train_on says what is trained"),
    "train_on_inputs": choice({True: {"data.train_on": "all"}, False: {}}, "data.train_on says what is trained"),
    "train_on_prompt": choice({True: {"data.train_on": "all"}, False: {}}, "data.train_on says what is trained"),
    "mask_history": choice({True: {"data.train_on": "last_assistant"}, False: {}},
        "data.train_on says what is trained"),
    **only(is_off, "write it into the rows, or into the chat template", "system_prompt"),
    # the model
    "attn_implementation": as_key("model.attn_implementation", lambda value: ATTENTION.get(str(value).lower()),
        KERNELS),
    "flash_attn": as_key("model.attn_implementation", lambda value: ATTENTION.get(str(value).lower()), KERNELS),
    "flash_attention": _if_true({"model.attn_implementation": "flash_attention_2"}, KERNELS),
    "flex_attention": _if_true({"model.attn_implementation": "flex"}, KERNELS),
    "sdp_attention": _if_true({"model.attn_implementation": "sdpa"}, KERNELS),
    "eager_attention": _if_true({"model.attn_implementation": "sdpa"}, KERNELS),
    "torch_dtype": as_key("model.fsdp_config.compute_dtype", lambda value: DTYPES.get(str(value)), PRECISION),
    "dtype": as_key("model.fsdp_config.compute_dtype", lambda value: DTYPES.get(str(value)), PRECISION),
    "bf16": choice({True: {"model.fsdp_config.compute_dtype": "bf16"}, "auto": {}, "full": {
        "model.fsdp_config.compute_dtype": "bf16", "model.fsdp_config.model_dtype": "bf16"},
        False: {"model.fsdp_config.compute_dtype": "fp32"}}, PRECISION),
    "bfloat16": _if_true({"model.fsdp_config.compute_dtype": "bf16"}, PRECISION),
    "float32": _if_true({"model.fsdp_config.compute_dtype": "fp32"}, PRECISION),
    "pure_bf16": _if_true({"model.fsdp_config.model_dtype": "bf16"}, PRECISION),
    "activation_checkpointing": as_key("model.enable_gradient_checkpointing"),
    "disable_gradient_checkpointing": _negated("model.enable_gradient_checkpointing"),
    "selective_checkpointing": _if_true({"model.enable_gradient_checkpointing": True,
        "model.gradient_checkpointing_kind": "selective"}, "model.gradient_checkpointing_kind says what is recomputed"),
    "lora_target_linear": _if_true({"model.target_modules": "all-linear"}, "model.target_modules says it"),
    "use_peft": choice({True: {}, False: {"model.lora_rank": 0}}, "model.lora_rank above 0 trains an adapter"),
    "adapter": choice({"lora": {}, "": {}, "qlora": {"model.base_dtype": "nf4"}},
                      "model.lora_rank above 0 trains an adapter, model.base_dtype=nf4 keeps the rest in 4 bits"),
    "quantization_bit": choice({4: {"model.base_dtype": "nf4"}}, "model.base_dtype=nf4 is the only quantisation"),
    "finetuning_type": choice({"lora": {}, "full": {"model.lora_rank": 0}},
                              "model.lora_rank above 0 trains an adapter, 0 all weights"),
    "stage": choice({"sft": {}, "pt": {"data.format": "text"}}, OTHER_TRAINING),
    # the run
    "warmup_steps": Foreign(_warmup, "optim.warmup_steps is a number of steps, optim.warmup_steps_ratio a part"),
    "save_strategy": SAVE_STRATEGY,
    "eval_strategy": EVAL_STRATEGY,
    "evaluation_strategy": EVAL_STRATEGY,
    **only(lambda value: value in (None, False),
        "trainer.save_hf_freq saves models alone, trainer.save_freq what is needed to resume", "save_only_model"),
    "saves_per_epoch": choice({1: {"trainer.save_freq": "epoch"}}, "trainer.save_freq takes epoch, steps or a part of "
                              "the run: n per epoch over e epochs are trainer.save_freq=1/(n x e)"),
    "evals_per_epoch": choice({1: {"trainer.test_freq": -1}}, "trainer.test_freq takes -1 (every epoch), steps or a "
                              "part of the run: n per epoch over e epochs are trainer.test_freq=1/(n x e)"),
    "resume_from_checkpoint": Foreign(
        lambda value: NOTHING if isinstance(value, bool | None) else Reading(
            {"trainer.resume_from_path": value}, {"trainer.resume_mode": "resume_path"}),
        "the same command resumes by itself; trainer.resume_mode=disable begins anew"),
    "auto_resume_from_checkpoints": choice({True: {}, False: {"trainer.resume_mode": "disable"}},
                                           "the same command resumes by itself"),
    "overwrite_output_dir": choice({True: {"trainer.resume_mode": "disable"}, False: {}},
                                   "the same command resumes by itself; trainer.resume_mode=disable begins anew"),
    **only(lambda value: value in (None, False), "every epoch is shuffled; data.curriculum orders "
                              "the first ones", "disable_shuffling"),
    "metric_for_best_model": choice({"loss": {"trainer.early_stop_metric": "val/loss"},
        "eval_loss": {"trainer.early_stop_metric": "val/loss"}},
        "trainer.early_stop_metric names it: val/loss, val/perplexity, val/token_accuracy"),
    **only(is_off, "set trainer.hub_model_id=org/name, which pushes", "push_to_hub"),
    **only(is_off, "hide the GPUs: CUDA_VISIBLE_DEVICES='' torchrun ...", "use_cpu"),
    "adam_beta1": _adam(0),
    "adam_beta2": _adam(1),
    "generate_samples": as_key("trainer.generate_samples", lambda value: value if type(value) is int else None,
                               "trainer.generate_freq says how often answers are shown"),
    **{name: _adds_logger(tracker) for name, tracker in LOGGERS.items()},
    "optimizer": choice(
        {"none": {}, "adamw": {}, "adamw_torch": {}, "adamw_torch_fused": {}, "adamw_hf": {},
         "adamw_bnb_8bit": {"optim.name": "adamw_8bit"},
         **{name: {"optim.name": name} for name in ("adamw_8bit", "muon", "sgd", "lion", "adafactor")}}, OPTIMIZER),
    **not_offered(OPTIMIZER,
        "optim_args optim_target_modules adam_epsilon2 adam_beta3 use_galore use_apollo use_badam use_adam_mini "
        "use_muon loraplus_lr_ratio loraplus_lr_embedding embedding_lr embedding_lr_scale lr_groups torchdistx_path "
        "lisa_n_layers lisa_step_interval lisa_layers_attribute"),
    **no_effect(OPTIMIZER, "galore_target galore_rank galore_update_interval galore_scale galore_proj_type "
        "galore_layerwise apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj "
        "apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front badam_mode badam_start_block "
        "badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode badam_verbose dion_lr "
        "dion_momentum dion_rank_fraction dion_rank_multiple_of qgalore_rank qgalore_update_proj_gap qgalore_scale "
        "qgalore_proj_type qgalore_proj_quant qgalore_proj_bits qgalore_proj_group_size qgalore_cos_threshold "
        "qgalore_gamma_proj qgalore_queue_size"),
    **only(lambda value: value in (None, 1e-8), "AdamW's epsilon is 1e-8", "adam_epsilon"),
    **not_offered("a schedule is optim.lr_scheduler with warmup_steps, warmup_steps_ratio and min_lr_ratio",
        "lr_scheduler_kwargs lr_quadratic_warmup cosine_constant_lr_ratio lr_div_factor jagged_restart_steps "
        "jagged_restart_warmup_steps jagged_restart_anneal_steps relora relora_prune_ratio relora_prune_method "
        "relora_cpu_offload"),
    **not_offered("fp16 and fp8 are not trained in; use bf16 or fp32",
        "fp16 float16 fp16_full_eval fp8 fp8_config fp8_backend fp8_enable_fsdp_float8_all_gather"),
    **no_effect("numbers are computed in model.fsdp_config.compute_dtype, norms and sums in fp32",
        "tf32 bf16_full_eval upcast_layernorm upcast_lmhead_output fp32_norms fp32_norm_classes "
        "embeddings_skip_upcast infer_dtype peft_autocast_adapter_dtype"),
    "use_dft_loss": _if_true({"optim.loss": "dft"}, LOSSES),
    **dict.fromkeys(("use_eaft_loss", "use_eaft"), _if_true({"optim.loss": "eaft"}, LOSSES)),
    "loss_type": choice({"nll": {}, "chunked_nll": {}, "dft": {"optim.loss": "dft"}}, LOSSES),
    **not_offered(LOSSES, "use_asft_loss scaling_softmax compute_accuracy center_rewards_coefficient "
        "loss_watchdog_threshold"),
    **no_effect("it belongs to a loss that is not offered", "asft_alpha eaft_alpha eaft_k scaling_softmax_factor "
        "scaling_softmax_bias loss_watchdog_patience"),
    **no_effect("the loss never holds whole logits", "chunked_cross_entropy chunked_cross_entropy_num_chunks "
        "flash_attn_cross_entropy average_tokens_across_devices ignore_pad_token_for_loss large_head_attention"),
    **not_offered(OTHER_TRAINING, "rl trl vllm ebft qat reward_model process_reward_model do_predict "
        "kto_chosen_weight pref_beta ref_model ref_model_adapters reward_model_adapters dpo_use_weighting "
        "precompute_ref_log_probs dpo_use_liger_kernel dpo_padding_free dpo_loss_type dpo_loss_weights dpo_beta "
        "dpo_norm_loss rpo_alpha dpo_generate_during_eval dpo_use_logits_to_keep rl_beta"),
    **no_effect("it belongs to preference tuning", "pref_ftx pref_bco_weight pref_loss dpo_label_smoothing "
        "kto_rejected_weight simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards "
        "ref_model_quantization_bit reward_model_quantization_bit reward_model_type ld_alpha orpo_alpha cpo_alpha "
        "kto_desirable_weight kto_undesirable_weight num_labels max_prompt_len"),
    **no_effect(LOADER, "dataloader_drop_last dataloader_num_workers dataloader_pin_memory "
        "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context "
        "dataloader_in_order dataset_keep_in_memory overwrite_cache preprocessing_batch_size "
        "data_shared_file_system skip_prepare_dataset remove_unused_columns length_column_name "
        "train_sampling_strategy label_names num_dataset_shards_to_save preprocess_iterable is_preprocess"),
    **not_offered("all rows are tokenised before the first step, and the data is then an exact function of the seed",
        "streaming dataset_streaming pretraining_dataset buffer_size streaming_multipack_buffer_size tokenized_path "
        "dataset_shard_num push_dataset_to_hub pretraining_sample_concatenation"),
    **no_effect("samples are placed by data.micro_batch_size_per_gpu or data.max_tokens_per_gpu",
        "packing_strategy eval_packing eval_sample_packing pad_to_multiple_of pad_to_sequence_len "
        "auto_find_batch_size sample_packing_group_size sample_packing_bin_size sample_packing_sequentially "
        "sample_packing_mp_start_method multipack_real_batches per_device_eval_batch_size eval_batch_size "
        "eval_accumulation_steps sample_packing_eff_est total_num_tokens total_supervised_tokens "
        "pretrain_multipack_buffer_size pretrain_multipack_attn block_diag_attn per_gpu_train_batch_size "
        "eval_sequence_len min_sample_len dataset_shard_idx eval_do_concat_batches eval_use_gather_object "
        "batch_eval_metrics include_for_metrics prediction_loss_only"),
    **not_offered(ROWS, "dataset_kwargs dataset_config tool_format field_messages dataset_dir media_dir "
        "dataset_exact_deduplication eot_tokens default_system default_system_message data_dir data_files columns "
        "test_split_size"),
    **not_offered("data.mixture mixes files, each with its weight (docs/tasks/mix.md)",
        "dataset_mixture mix_strategy interleave_probs"),
    **only(lambda value: value in (None, "train"), "write the split behind the id: data.train_files=org/name:split",
           "dataset_train_split split"),
    **no_effect("write the split behind the id: data.val_files=org/name:split", "dataset_test_split"),
    **no_effect("every epoch is shuffled over all rows", "shuffle_dataset shuffle_merged_datasets "
        "shuffle_before_merging_datasets data_seed ignore_data_skip"),
    **no_effect("each entry of data.val_files has a loss of its own", "eval_on_each_dataset"),
    **not_offered("the tokenizer's own chat template is used; set data.chat_template for another", "template"),
    "enable_thinking": as_key("data.apply_chat_template_kwargs", lambda value: {"enable_thinking": value}),
    **no_effect("data.thinking_history says what becomes of earlier thoughts", "preserve_thinking"),
    **not_offered(TOKENS, "eos_token pad_token bos_token unk_token special_tokens additional_special_tokens tokens "
        "added_tokens_overrides add_tokens add_special_tokens new_special_tokens_config resize_vocab "
        "tokenizer_config base_model_config model_init_kwargs overrides_of_model_config overrides_of_model_kwargs "
        "rope_scaling model_max_length train_from_scratch reinit_weights shrink_embeddings fix_untrained_tokens "
        "tokenizer_use_mistral_common cls_model_config use_pose"),
    **no_effect(TOKENS, "use_fast_tokenizer tokenizer_use_fast tokenizer_legacy tokenizer_type model_type "
        "type_of_model resize_token_embeddings_to_32x mean_resizing_embeddings split_special_tokens "
        "init_special_tokens tokenizer_save_jinja_files is_falcon_derived_model is_llama_derived_model "
        "is_mistral_derived_model is_qwen_derived_model pose_split_on_token_ids pose_max_context_len "
        "pose_num_chunks use_cache save_safetensors"),
    **not_offered(MULTIMODAL, "processor_type processor_kwargs role_boundaries image_max_pixels image_size "
        "freeze_mm_modules use_audio_in_video"),
    **no_effect(MULTIMODAL, "image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels "
        "video_min_pixels video_fps video_maxlen audio_sampling_rate freeze_vision_tower "
        "freeze_multi_modal_projector freeze_language_model image_resize_algorithm"),
    **not_offered(ADAPTERS, "lora_fan_in_fan_out lora_rank_pattern lora_alpha_pattern "
        "peft_layers_to_transform peft_layers_pattern peft_layer_replication peft_trainable_token_indices "
        "peft_ensure_weight_tying loftq_config loftq_bits lora_on_cpu peft gptq pissa_init oft_rank module_dropout "
        "use_llama_pro create_new_adapter mixture_of_depths shift_attn s2_attention use_unsloth use_unsloth_gc "
        "use_kt freeze_extra_modules unfrozen_parameters lora_mlp_kernel lora_qkv_kernel lora_o_kernel "
        "lora_embedding_kernel use_hyper_parallel use_mca merge_method plugins"),
    **no_effect(ADAPTERS, "pissa_iter pissa_convert oft_block_size oft_target freeze_trainable_layers "
        "freeze_trainable_modules adapter_folder lora_task_type use_reentrant_gc kt_weight_path "
        "kt_expert_checkpoint_path kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size "
        "hyper_parallel_args"),
    **no_effect("the run directory is the merged model, with lora_adapter/ beside it", "merge_lora"),
    **not_offered("model.base_dtype=nf4 is the only quantisation of what LoRA freezes",
        "model_quantization_config quantize_moe_experts quantization double_quantization_bit use_onebitllms"),
    **only(lambda value: value in (None, "nf4"), "model.base_dtype=nf4 is the only quantisation",
        "bnb_4bit_quant_type"),
    **no_effect("it belongs to quantisation", "quantization_method quantization_type double_quantization "
        "quantization_device_map use_bnb_nested_quant bnb_config_kwargs model_quantization_config_kwargs "
        "qlora_sharded_model_loading bnb_4bit_compute_dtype bnb_4bit_quant_storage"),
    **not_offered("Ulysses shares rows of tokens among ranks (ulysses_sequence_parallel_size); tensor and pipeline "
        "parallelism are not offered", "tensor_parallel_size parallelism_config pipeline_parallel_size"),
    **no_effect("Ulysses needs no such choice", "heads_k_stride ring_attn_func"),
    **no_effect(SHARDING, "ignore_bias_buffers fsdp fsdp_config fsdp_version fsdp_final_state_dict_type "
        "accelerator_config dp_shard_size ddp ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers "
        "ddp_static_graph ddp_backend local_rank world_size device device_map low_cpu_mem_usage max_memory "
        "gpu_memory_limit experimental_skip_move_to_device offload_folder resources_per_worker master_addr "
        "master_port"),
    **not_offered(SHARDING, "deepspeed deepcompile use_ray ray_init_kwargs ray_num_workers ray_run_name"),
    **not_offered("model.fsdp_config.cpu_offload=true or model.enable_gradient_checkpointing=true save memory",
        "layer_offloading ple_cpu_offload tiled_mlp"),
    **no_effect("model.gradient_checkpointing_kind says what is recomputed", "gradient_checkpointing_kwargs "
        "activation_checkpointing_kwargs gradient_checkpointing_use_reentrant tiled_mlp_num_shards "
        "tiled_mlp_use_original_mlp recompute_layer_types"),
    **no_effect("model.compile=true compiles every decoder layer", "torch_compile_backend torch_compile_mode "
        "torch_compile_options flex_attn_compile_kwargs"),
    **not_offered(KERNELS, "xformers_attention sage_attention flash_optimum flash_attn_fuse_mlp flash_attn_rms_norm "
        "gemma4_hybrid_attn_impl flash_attn_d512 fused_attn_kernel experts_implementation llama4_linearized_experts "
        "use_kernels sdpa_varlen"),
    **no_effect(KERNELS, "liger_kernel_config"),
    **no_effect("the trainer looks after its memory", "torch_empty_cache_steps gc_steps gc_collect_steps "
        "skip_memory_metrics"),
    **no_effect("the log is told by trainer.log_freq and trainer.logger", "logging_strategy logging_first_step "
        "log_on_each_node logging_nan_inf_filter log_level log_level_replica disable_tqdm logging_dir "
        "include_num_input_tokens_seen include_tokens_per_second include_tkps include_effective_tokens_per_second "
        "print_param_status plot_loss debug"),
    **not_offered(TRACKING, "use_comet use_otel_metrics wandb_entity wandb_run_id wandb_mode wandb_watch "
        "wandb_log_model wandb_run_group mlflow_tracking_uri mlflow_experiment_name mlflow_run_name "
        "hf_mlflow_log_artifacts comet_workspace comet_project_name comet_experiment_key comet_mode comet_online "
        "comet_experiment_config otel_metrics_host otel_metrics_port trackio_space_id trackio_bucket_id "
        "trackio_static_space_id trackio_project_name trackio_run_name swanlab_project swanlab_workspace "
        "swanlab_run_name swanlab_mode swanlab_logdir swanlab_lark_webhook_url trackio_project"),
    **not_offered("trainer.profile_steps=[10,12] records these steps (docs/performance.md)",
        "profile profiler_steps profiler_steps_start enable_torch_profiler"),
    **no_effect("trainer.profile_steps=[10,12] records these steps (docs/performance.md)", "profiler_output_dir "
        "profiler_wait_steps profiler_warmup_steps profiler_active_steps profiler_repeat profiler_record_shapes "
        "profiler_profile_memory profiler_with_stack profile_modules"),
    **no_effect("a checkpoint of every kind is whole, and written once by all ranks", "save_on_each_node "
        "enable_jit_checkpoint restore_callback_states_from_checkpoint save_first_step greater_is_better eval_delay "
        "dynamic_checkpoint"),
    **no_effect("on a CPU's ranks two runs are equal bit for bit", "full_determinism"),
    **no_effect("the run trains, and validates where data.val_files is set", "do_train do_eval do_causal_lm_eval "
        "eval_causal_lm_metrics"),
    **not_offered("python -m sft.evaluate grades a model's answers (docs/after_training.md)", "do_bench_eval "
        "bench_dataset benchmarks bench_split task eval_table_size eval_max_new_tokens predict_with_generate"),
    **no_effect("it belongs to a command of LLaMA-Factory that only evaluates",
        "task_dir lang n_shot save_dir download_mode"),
    **not_offered("the story of a run is one file, sft/fsdp_sft_trainer.py", "trainer_cls callbacks"),
    **no_effect("it is about axolotl's own program", "strict axolotl_config_path capabilities env_capabilities"),
    **no_effect("log in by `hf auth login`", "hf_use_auth_token"),
    **no_effect(HUB, "hub_strategy hub_always_push hub_revision hub_model_revision "
        "push_to_hub_revision overwrite_hub_revision"),
    **no_effect("trainer.generate_freq and its neighbours show answers, sampled greedily", "generation_temperature "
        "generation_top_p generation_top_k generation_prompt_ratio generation_do_sample do_sample temperature top_p "
        "top_k num_beams repetition_penalty length_penalty skip_special_tokens eval_num_beams use_kv_cache "
        "infer_backend num_completions_to_print"),
    **no_effect("generation and export have commands of their own: sft.generate, sft.export", "export_dir "
        "export_size export_device export_quantization_bit export_quantization_dataset export_quantization_nsamples "
        "export_quantization_maxlen export_legacy_format export_hub_model_id vllm_maxlen vllm_gpu_util "
        "vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size "
        "sglang_config sglang_lora_backend gradio_title gradio_share gradio_server_name gradio_server_port "
        "gradio_max_new_tokens gradio_temperature use_v1_kernels"),
}  # fmt: skip
