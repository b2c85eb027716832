"""Declare the keys of a run and what each may hold: frozen, typed, without defaults (those stand in conf/).

The types describe themselves: an error message and the reference page quote the `description` of a key's type.
"""

# Annotations stay real objects here (no `from __future__ import annotations`): expectations.py reads them.
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass


def _expand_home(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _several(value: Any) -> Any:
    return value if isinstance(value, list | tuple | None) else (value,)


def _none_is_empty(value: Any) -> Any:
    return () if value is None else _several(value)


def _digits_are_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


# `strict`: "12" is no number, 1 is no bool, 1.5 is no count. A float still takes an int.
Flag = Annotated[bool, Field(strict=True, description="true or false")]
Count = Annotated[int, Field(strict=True, ge=1, description="a whole number of at least 1")]
CountOrZero = Annotated[int, Field(strict=True, ge=0, description="a whole number of at least 0")]
CountOrOff = Annotated[int, Field(strict=True, ge=-1, description="a whole number of at least -1")]
PartOfRun = Annotated[float, Field(strict=True, gt=0, lt=1, description="a part of the run above 0 and below 1")]
Interval = CountOrOff | PartOfRun | Literal["epoch"]
Length = Annotated[int, Field(strict=True, ge=2, description="a whole number of at least 2")]
Above0 = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False, description="a number above 0")]
AtLeast0 = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False, description="a number of at least 0")]
Dropout = Annotated[float, Field(strict=True, ge=0, lt=1, description="a number of at least 0 and below 1")]
Share = Annotated[float, Field(strict=True, ge=0, le=1, description="a number from 0 to 1")]
ShareAbove0 = Annotated[float, Field(strict=True, gt=0, le=1, description="a number above 0 and up to 1")]
Part = Annotated[float, Field(strict=True, ge=0, lt=1, description="a part of the rows, from 0 to below 1,")]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1)]
Betas = Annotated[tuple[Decay, Decay], Field(description="two numbers, each at least 0 and below 1")]


def _in_order(steps: tuple[int, int]) -> tuple[int, int]:
    if steps[0] > steps[1]:
        raise ValueError("the first step comes after the last one")
    return steps


Steps = Annotated[
    tuple[Count, Count], AfterValidator(_in_order), Field(description="two step numbers, [first, last], in order")
]

Text = Annotated[str, Field(strict=True, min_length=1, description="text")]
Name = Annotated[Text, BeforeValidator(_digits_are_text), Field(description="text")]  # experiment_name=7 is a name
UserPath = Annotated[Text, AfterValidator(_expand_home), Field(description="a path")]
ValMetric = Annotated[
    Text,
    Field(
        pattern=r"^val/(\w+|loss/.+)$",
        description="val/loss, val/perplexity, val/token_accuracy, val/loss/<file> or val/<trainer.generate_metric>",
    ),
]
HubModel = Annotated[
    Text, Field(pattern=r"^([\w-][\w.-]*/)?[\w-][\w.-]*$", description="a hub id org/name, or name for one of your own")
]
TaskMetric = Annotated[
    UserPath,
    Field(
        pattern=r"^(exact_match|contains|rouge|.+\.py:[A-Za-z_]\w*)$",
        description="exact_match, contains, rouge or file.py:function",
    ),
]
Template = Annotated[UserPath, Field(description="jinja text, a file or a name")]
Model = Annotated[UserPath, Field(description="a model directory or a hub id org/name")]
Files = Annotated[
    tuple[UserPath, ...], BeforeValidator(_several), Field(min_length=1, description="a path or a list of paths")
]
Keys = Annotated[tuple[Text, ...], BeforeValidator(_none_is_empty), Field(description="a list of names")]
Names = Annotated[
    tuple[Text, ...], BeforeValidator(_several), Field(min_length=1, description="a name or a list of names")
]
Modules = Annotated[
    Text | tuple[Text, ...], Field(min_length=1, description="all-linear, a list of names or a regular expression")
]
LoraStart = Annotated[Flag | Text, Field(description="true or gaussian")]
Format = Literal["auto", "messages", "sharegpt", "prompt_response", "alpaca", "dolly", "openorca", "text"]
Variables = Annotated[dict[str, Any], Field(description="a section of keys")]

Tracker = Literal["console", "jsonl", "tensorboard", "wandb", "mlflow", "swanlab", "trackio"]
Trackers = Annotated[
    tuple[Tracker, ...],
    BeforeValidator(_several),
    Field(min_length=1, description=f"one or a list of {', '.join(get_args(Tracker))}"),
]


def _is_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return text


Pattern = Annotated[Text, AfterValidator(_is_pattern), Field(description="a regular expression")]
RateShare = Annotated[Text, Field(pattern=r"^x(\d+\.?\d*|\.\d+)(e-?\d+)?$", description="x0.1 for a share of optim.lr")]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ParameterGroup:
    """Describe an entry of optim.groups. What is None stays as for all other parameters."""

    match: Pattern
    lr: Above0 | RateShare | None = None
    weight_decay: AtLeast0 | None = None
    name: Name | None = None  # in logs and metrics; None: the pattern


Patterns = Annotated[
    tuple[Pattern, ...], BeforeValidator(_none_is_empty), Field(description="a list of regular expressions")
]
ParameterGroups = Annotated[
    tuple[ParameterGroup, ...],
    BeforeValidator(_none_is_empty),
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
    """ "path" and "path:N" as a source; what stands behind the colon of a hub id (org/name:train) is no number."""
    if not isinstance(value, str):
        return value
    path, colon, rows = value.rpartition(":")
    counted = bool(colon) and rows.isdecimal() and not Path(_expand_home(value)).exists()
    return {"path": path, "rows": int(rows)} if counted else {"path": value}


Mixture = Annotated[
    tuple[Annotated[SourceConfig, BeforeValidator(_source)], ...],
    BeforeValidator(_several),
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
    attn_implementation: Literal["auto", "sdpa", "varlen", "flash_attention_2", "flash_attention_3", "flex"]
    enable_gradient_checkpointing: Flag
    gradient_checkpointing_kind: Literal["full", "selective"]
    activation_offload: Flag
    compile: Flag
    use_liger: Flag
    loss_kernel: Literal["auto", "torch", "torch_fp32", "triton", "triton_fp32"]
    base_dtype: Literal["bf16", "nf4"]
    lora_rank: CountOrZero
    lora_alpha: Count
    target_modules: Modules
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
