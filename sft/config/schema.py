"""Declare the keys of a run: frozen, typed, without defaults (those stand in conf/)."""

# Annotations stay real objects here (no `from __future__ import annotations`): expectations.py reads them.
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from sft.config.values import (
    Above0,
    AtLeast0,
    Betas,
    Count,
    CountOrOff,
    CountOrZero,
    Dropout,
    Files,
    Flag,
    Format,
    HubModel,
    Interval,
    Keys,
    Length,
    LoraStart,
    Model,
    Modules,
    Name,
    Names,
    Part,
    PartOfRun,
    Pattern,
    Patterns,
    RateShare,
    Share,
    ShareAbove0,
    Steps,
    TaskMetric,
    Template,
    Text,
    Trackers,
    UserPath,
    ValMetric,
    Variables,
    expand_home,
    none_is_empty,
    one_or_several,
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ParameterGroup:
    """Describe an entry of optim.groups. What is None stays as for all other parameters."""

    match: Pattern
    lr: Above0 | RateShare | None = None
    weight_decay: AtLeast0 | None = None
    name: Name | None = None  # in logs and metrics; None: the pattern


ParameterGroups = Annotated[
    tuple[ParameterGroup, ...],
    BeforeValidator(none_is_empty),
    Field(
        description="a list of {match: REGEX, lr: 1e-6 or x0.1, weight_decay: 0, name: NAME}, with lr or weight_decay"
    ),
]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SourceConfig:
    """Describe an entry of data.mixture. Its defaults stand here: conf/ has no place for those of a list's entries."""

    path: UserPath
    format: Format | None = None  # None: data.format
    rows: Count | None = None  # None: all of them
    seed: CountOrZero | None = None  # of the rows that are drawn; None: trainer.seed
    weight: Above0 = 1.0
    fraction: ShareAbove0 | None = None
    name: Name | None = None  # None: from the path


def _source(value: Any) -> Any:
    """Return the entry that "path" or "path:N" stands for; behind the colon of org/name:train stands no number."""
    if not isinstance(value, str):
        return value
    path, colon, rows = value.rpartition(":")
    counted = bool(colon) and rows.isdecimal() and not Path(expand_home(value)).exists()
    return {"path": path, "rows": int(rows)} if counted else {"path": value}


Mixture = Annotated[
    tuple[Annotated[SourceConfig, BeforeValidator(_source)], ...],
    BeforeValidator(one_or_several),
    Field(min_length=1, description="a list of sources"),
]


@dataclass(frozen=True)
class MultiturnConfig:
    enable: Flag
    messages_key: Text
    tools_key: Text
    enable_thinking_key: Text


@dataclass(frozen=True)
class ColumnsConfig:
    prompt: Text | None
    response: Text | None
    messages: Text | None
    text: Text | None
    tools: Text | None
    enable_thinking: Text | None
    system: Text | None
    history: Text | None
    context: Text | None
    reasoning: Text | None
    weight: Text | None


@dataclass(frozen=True)
class RolesConfig:
    system: Keys
    user: Keys
    assistant: Keys
    tool: Keys


@dataclass(frozen=True)
class MessageKeysConfig:
    role: Text | None
    content: Text | None
    reasoning: Text | None
    tool_calls: Text | None
    weight: Text | None


@dataclass(frozen=True)
class CustomClassConfig:
    path: UserPath | None
    name: Text | None


@dataclass(frozen=True)
class DataConfig:
    train_batch_size: Count
    micro_batch_size_per_gpu: Count
    max_tokens_per_gpu: Count | None
    train_files: Files | None
    mixture: Mixture | None
    val_files: Files | None
    val_fraction: Part | Count
    train_max_samples: CountOrOff
    val_max_samples: CountOrOff
    cache_dir: UserPath
    num_workers: Count | None
    format: Format
    bad_rows: Literal["error", "drop"]
    prompt_key: Text
    response_key: Text
    prompt_dict_keys: Keys
    response_dict_keys: Keys
    multiturn: MultiturnConfig
    text_key: Text
    columns: ColumnsConfig
    ignore_columns: Keys
    roles: RolesConfig
    message_keys: MessageKeysConfig
    ignore_message_keys: Keys
    max_length: Length
    truncation: Literal["error", "left", "right", "drop"]
    balance_dp_token: Flag
    curriculum: Text | None
    curriculum_epochs: Count
    train_on: Literal["assistant", "last_assistant", "all", "custom"]
    thinking_history: Literal["auto", "preserved", "last"]
    chat_template: Template | None
    apply_chat_template_kwargs: Variables
    custom_cls: CustomClassConfig

    @property
    def has_val(self) -> bool:
        """Return True if there are rows to validate on."""
        return self.val_files is not None or self.val_fraction > 0


@dataclass(frozen=True)
class WrapPolicyConfig:
    min_num_params: CountOrZero


@dataclass(frozen=True)
class FsdpConfig:
    model_dtype: Literal["fp32", "bf16"]
    compute_dtype: Literal["bf16", "fp32"]
    cpu_offload: Flag
    offload_params: Flag
    reshard_after_forward: Flag
    reduce_gradients: Literal["auto", "once", "every_micro_batch"]
    dp_replicate: Count
    wrap_policy: WrapPolicyConfig


@dataclass(frozen=True)
class ModelConfig:
    partial_pretrain: Model
    revision: Name | None
    external_lib: Text | None
    trust_remote_code: Flag
    dequantise: Flag
    strategy: Literal["fsdp2", "fsdp"]
    fsdp_config: FsdpConfig
    attn_implementation: Literal["auto", "sdpa", "blocked", "varlen", "flash_attention_2", "flash_attention_3", "flex"]
    enable_gradient_checkpointing: Flag
    gradient_checkpointing_kind: Literal["full", "selective"]
    activation_offload: Flag
    compile: Flag
    use_liger: Flag
    loss_kernel: Literal["auto", "torch", "torch_fp32", "triton", "triton_fp32"]
    base_dtype: Literal["bf16", "nf4"]
    lora_rank: CountOrZero
    lora_alpha: Count
    target_modules: Modules | None
    target_parameters: Names | None
    lora_dropout: Dropout
    use_rslora: Flag
    use_dora: Flag
    modules_to_save: Names | None
    init_lora_weights: LoraStart
    lora_adapter_path: UserPath | None
    neftune_alpha: AtLeast0
    frozen: Patterns
    train_only: Patterns
    router_aux_loss: AtLeast0 | None


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "adamw_8bit", "muon", "sgd", "lion", "adafactor"]
    lr: Above0
    betas: Betas
    weight_decay: AtLeast0
    clip_grad: Above0
    lr_scheduler: Literal["cosine", "wsd", "linear", "constant"]
    warmup_steps: CountOrZero | None
    warmup_steps_ratio: Share
    min_lr_ratio: Share
    groups: ParameterGroups
    loss: Literal["ce", "dft", "eaft"]
    label_smoothing: Dropout
    z_loss: AtLeast0


@dataclass(frozen=True)
class TrainerConfig:
    default_local_dir: UserPath
    project_name: Name
    experiment_name: Name
    total_epochs: Count
    total_training_steps: Count | None
    seed: CountOrZero
    logger: Trackers
    log_freq: Count
    test_freq: CountOrOff | PartOfRun
    val_before_train: Flag
    early_stop_metric: ValMetric | None
    early_stop_patience: Count
    early_stop_min_delta: AtLeast0
    save_best: Flag
    load_best_at_end: Flag
    generate_freq: CountOrOff
    generate_samples: Count
    generate_max_new_tokens: Count
    generate_metric: TaskMetric | None
    save_freq: Interval
    save_hf_freq: Interval
    async_save: Flag
    max_ckpt_to_keep: Count | None
    resume_mode: Literal["auto", "disable", "resume_path"]
    resume_from_path: UserPath | None
    resume_force: Flag
    init_from_checkpoint: UserPath | None
    hub_model_id: HubModel | None
    hub_private: Flag
    hub_dry_run_dir: UserPath | None
    profile_steps: Steps | None
    timeout_s: Count

    @property
    def task_metric(self) -> str | None:
        """Return the name that what generate_metric measures has in metrics.jsonl; None without."""
        return None if self.generate_metric is None else f"val/{self.generate_metric.rpartition(':')[2]}"


@dataclass(frozen=True)
class SftConfig:
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    trainer: TrainerConfig
    ulysses_sequence_parallel_size: Count
    use_remove_padding: Flag
