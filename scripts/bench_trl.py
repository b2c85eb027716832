"""The rivals of bench_data.py, run by the Python of their own virtual environment.

    python bench_trl.py ROWS.jsonl TOKENIZER_DIR

For every line "trl PROCESSES" or "map PROCESSES" on standard input, one JSON line with what that took and made.

trl   SFTTrainer's own preparation of a data set of messages, assistant_only_loss=True, nothing else of the trainer
map   datasets.map(batched=True): apply_chat_template of the batch with its assistant masks, the least one would write
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import Any

import datasets  # pyright: ignore[reportMissingImports] - the environment of the rivals has it
from transformers import AutoTokenizer

LONGER_THAN_ANY = 1 << 20  # tokens


def prepare_by_trl(rows: datasets.Dataset, tokenizer: Any, processes: int) -> datasets.Dataset:
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as output_dir:
        config = SFTConfig(
            output_dir=output_dir,
            assistant_only_loss=True,
            dataset_num_proc=processes if processes > 1 else None,
            max_length=LONGER_THAN_ANY,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
        )
    trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=tokenizer.chat_template, completion_only_loss=False)
    return SFTTrainer._prepare_dataset(trainer, rows, tokenizer, config, False, None, "train")


def prepare_by_map(rows: datasets.Dataset, tokenizer: Any, processes: int) -> datasets.Dataset:
    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = tokenizer.apply_chat_template(batch["messages"], return_dict=True, return_assistant_tokens_mask=True)
        masked = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        labels = [[token if mask else -100 for token, mask in zip(*row, strict=True)] for row in masked]
        return {"input_ids": encoded["input_ids"], "labels": labels}

    processes_or_none = processes if processes > 1 else None
    return rows.map(encode, batched=True, remove_columns=rows.column_names, num_proc=processes_or_none)


def run(way: str, processes: int, path: str, tokenizer: Any) -> dict[str, Any]:
    prepare = {"trl": prepare_by_trl, "map": prepare_by_map}[way]
    with tempfile.TemporaryDirectory() as cache_dir:
        rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache_dir)
        prepare(rows.select(range(8)), tokenizer, 1)  # imports, and the template's compilation
        started, worked = time.perf_counter(), sum(os.times()[:4])
        prepared = prepare(rows, tokenizer, processes)
        seconds, cpu_seconds = time.perf_counter() - started, sum(os.times()[:4]) - worked
        ids, trained = hashlib.sha256(), 0
        row: Any
        for row in prepared:
            ids.update(json.dumps(row["input_ids"]).encode())
            trained += sum(label != -100 for label in row["labels"])
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "samples": len(prepared),
        "ids": ids.hexdigest(),
        "trained": trained,
    }


def main() -> None:
    path, tokenizer_dir = sys.argv[1:]
    datasets.disable_progress_bars()
    datasets.disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    for line in sys.stdin:
        way, processes = line.split()
        print(json.dumps(run(way, int(processes), path, tokenizer)), flush=True)


if __name__ == "__main__":
    main()
