"""Supervised fine-tuning: `from sft import load_config, run`.

config = load_config(["data.train_files=train.parquet", "model.partial_pretrain=Qwen/Qwen2.5-0.5B"])
result = run(config)   # the same function that `python -m sft.fsdp_sft_trainer` calls

`request_save(run_dir)` asks a job that trains elsewhere for a checkpoint.
"""

from typing import TYPE_CHECKING, Any

from sft.config import SftConfig, load_config

if TYPE_CHECKING:
    from sft.fsdp_sft_trainer import RunResult, run
    from sft.train.requests import request_save

__all__ = ["RunResult", "SftConfig", "load_config", "request_save", "run"]


def __getattr__(name: str) -> Any:
    if name in ("run", "RunResult"):  # on demand: loading a configuration must not cost importing torch
        from sft import fsdp_sft_trainer

        return getattr(fsdp_sft_trainer, name)
    if name == "request_save":
        from sft.train.requests import request_save

        return request_save
    raise AttributeError(f"module 'sft' has no attribute {name!r}")
