"""The rival of bench_train.py, run by the Python of its own virtual environment: one training run of TRL's SFTTrainer.

    python bench_train_trl.py '{"model": DIR, "rows": FILE, "output_dir": DIR, "steps": 10, ...}'

Prints one JSON line: when each step began and ended, its real, its supervised and its padding tokens, its loss.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import datasets  # pyright: ignore[reportMissingImports] - the environment of the rivals has it
import torch
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.began: list[float] = []
        self.ended: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began.append(time.time())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ended.append(time.time())

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


class Counter:
    """A collator that counts the tokens of every batch it makes."""

    def __init__(self, collate: Any):
        self._collate = collate
        self.tokens: list[tuple[int, int, int]] = []  # real, supervised, padding

    def __call__(self, rows: list[Any]) -> Any:
        batch = self._collate(rows)
        positions = batch["input_ids"].numel()
        real = int(batch["attention_mask"].sum()) if "attention_mask" in batch else positions
        self.tokens.append((real, int((batch["labels"] != -100).sum()), positions - real))
        return batch


def train(job: dict[str, Any]) -> dict[str, Any]:
    tuned = job["tuned"]
    settings: dict[str, Any] = {}
    if tuned:
        settings = {"gradient_checkpointing": False, "optim": "adamw_torch_fused"}
        settings["dataloader_pin_memory"] = torch.cuda.is_available()
    config = SFTConfig(
        output_dir=job["output_dir"],
        max_steps=job["steps"],
        per_device_train_batch_size=job["batch_size"],
        max_length=job["max_length"],
        packing=job["packing"],
        assistant_only_loss=True,
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        model_init_kwargs={"dtype": "bfloat16", "attn_implementation": job["attention"]} if tuned else None,
        **settings,
    )
    peft_config = None
    if job["lora_rank"]:
        from peft import LoraConfig

        peft_config = LoraConfig(r=job["lora_rank"], target_modules="all-linear", task_type="CAUSAL_LM")
    rows = datasets.load_dataset("json", data_files=job["rows"], split="train", cache_dir=job["cache_dir"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    clock = Clock()
    trainer = SFTTrainer(
        model=job["model"],
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[clock],
    )
    counter = Counter(trainer.data_collator)
    trainer.data_collator = counter
    trainer.train()
    on_cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "first_step_ended": clock.ended[0],
        "seconds": [end - begin for begin, end in zip(clock.began, clock.ended, strict=True)],
        "tokens": counter.tokens[: len(clock.ended)],
        "losses": clock.losses,
        "peak_memory_gb": peak / 1e9,
    }


if __name__ == "__main__":
    print(json.dumps(train(json.loads(sys.argv[1]))))
