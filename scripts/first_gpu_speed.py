"""What first_gpu.py times on a device: the trainer's own steps on models of random weights, and its command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_material import make_model, make_rows, make_tokenizer
from bench_result import spread
from bench_shapes import SHAPES
from simulate_step import QWEN3, QWEN3_8B, QWEN3_600M, Case, batches, configuration
from simulate_step import job_of as job_of_simulation
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig

from sft import fsdp_sft_trainer as trainer
from sft.data.order.collate import collate
from sft.model import place as placing
from sft.model.attention import Available, choose_attention
from sft.model.memory import estimate, gigabytes
from sft.model.pretrained import load_config
from sft.parallel.shards import local_part
from sft.parallel.world import World, process_group
from sft.train.forecast_memory import Footprint, load_of, size_of
from sft.train.profile import describe
from sft.types import Batch, Sample

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS = 3
TINY = QWEN3 | {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "vocab_size": 8192,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 2,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "tie_word_embeddings": False,
}
SMALL_GPT_OSS = GPT_OSS | TINY | {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]}
QWEN25_1B5 = QWEN3_600M | SHAPES["qwen2.5-1.5b"].architecture
CASES = {
    "small": Case(TINY, ranks=1, tokens=64, samples=4),
    "small, LoRA": Case(TINY, ranks=1, tokens=64, samples=4, overrides=("model.lora_rank=4",)),
    "Qwen3-0.6B": Case(QWEN3_600M, ranks=1, tokens=8192),
    "Qwen2.5-1.5B": Case(QWEN25_1B5, ranks=1, tokens=4096),
    "Qwen3-8B, LoRA": Case(QWEN3_8B, ranks=1, tokens=4096, overrides=("model.lora_rank=32",)),
    "gpt-oss, small": Case(SMALL_GPT_OSS, ranks=1, tokens=64, samples=4),
    "gpt-oss layers": Case(GPT_OSS, ranks=1, tokens=4096),
}


@contextmanager
def on_the_device() -> Iterator[torch.device]:
    """Be a world of one, with the process groups that a run has."""
    with process_group(World(rank=0, size=1, local_rank=0)):
        yield DEVICE


def job_of(case: Case, home: Path, device: torch.device, overrides: tuple[str, ...]) -> tuple[Any, list[Batch]]:
    """Return a job that can take steps on the device, and the micro-batches of one."""
    AutoConfig.for_model(**case.architecture).save_pretrained(home)
    case = replace(case, overrides=(*case.overrides, *overrides))
    config = configuration(case, home)
    chosen = choose_attention(
        load_config(home, trust_remote_code=False), wanted="auto", packed=True, half=True, here=Available.on(device)
    )
    model, _ = placing.build_bare_model(config, home, chosen)
    load = load_of(config, ranks=1, tokens=case.tokens, logits=case.tokens // 2, device=device.type)
    memory = Footprint(size_of(config, model), load, 1, device.type)
    job = job_of_simulation(config, model, home, 1, reduce_once=True, device=device, fill=lambda m: _fill(m, device))
    job.memory = memory
    return job, batches(case, job)


@torch.no_grad()
def _fill(model: Any, device: torch.device) -> None:
    """Give the sharded skeleton memory and random numbers; buffers hold what they held."""
    buffers = [(m, name, b) for m in model.modules() for name, b in m.named_buffers(recurse=False)]
    model.to_empty(device=device)
    for module, name, buffer in buffers:
        setattr(module, name, buffer.to(device))
    model.tie_weights()
    torch.manual_seed(0)
    for weight in model.parameters():
        part = local_part(weight)
        part.fill_(1.0) if part.ndim < 2 else part.normal_(std=0.02)


def of_steps(job: Any, micro_batches: list[Batch]) -> dict[str, Any]:
    """Time real steps: the first one apart, then tokens per second of a few, and the most memory they took."""
    if DEVICE.type == "cuda":
        micro_batches = [batch.pinned() for batch in micro_batches]
        torch.cuda.reset_peak_memory_stats()
    first, *seconds = [_seconds(lambda: trainer.train_step(job, micro_batches, [1.0])) for _ in range(1 + STEPS)]
    tokens = sum(batch.counts.tokens for batch in micro_batches)
    told: dict[str, Any] = {"first_s": first, "tokens_per_s": spread([tokens / each for each in seconds])}
    if DEVICE.type == "cuda":
        told["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return told


def of_row(job: Any, *, tokens: int) -> dict[str, Any]:
    """Time one step on a row of two samples, whose length no row had before."""
    import numpy as np

    lengths = (tokens // 3, tokens - tokens // 3)
    batch = collate(
        [Sample(np.zeros(n, np.int32), np.full(n, 1 / (tokens - 2), np.float32)) for n in lengths],
        packed=True,
        pad_id=0,
    )
    stats: list[Any] = []
    seconds = _seconds(lambda: stats.append(trainer.train_step(job, [batch], [batch.counts.weight_sum])))
    return {"tokens": tokens, "seconds": seconds, "finite": math.isfinite(stats[0].loss)}


def variants_compiled() -> dict[str, int]:
    """Return how many graphs torch compiled in this process, and how often it gave one up."""
    return {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}


def profiled(job: Any, micro_batches: list[Batch]) -> list[str]:
    """Profile two steps; return how long nothing ran, and the thirty most expensive kernels."""
    on_cuda = DEVICE.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as recorded:
        seconds = _seconds(lambda: [trainer.train_step(job, micro_batches, [1.0]) for _ in range(2)])
    return describe(recorded, seconds, steps=2, on_cuda=on_cuda).splitlines()


def peak_against(memory: Footprint) -> dict[str, Any]:
    """Return the estimate, and how far it is off where the device tells what was really taken."""
    estimated = estimate(memory.model, memory.load)
    told: dict[str, Any] = {"estimate": str(estimated)}
    if DEVICE.type == "cuda":
        told["estimate_over_peak"] = estimated.total / torch.cuda.max_memory_allocated()
        told["reserved"] = gigabytes(torch.cuda.max_memory_reserved())
    return told


def of_the_command_line(*, small: bool) -> Iterator[tuple[str, Any]]:
    """Yield what twenty steps took by the command, and whether they were the same with a checkpoint between."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_rows(home / "rows.jsonl", 40 if small else 200)
        shape = SHAPES["tiny"].architecture | {"num_hidden_layers": 2}
        if small:
            shape |= {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
        make_model(home / "model", shape)
        make_tokenizer(home / "model", home / "rows.jsonl")

        def train(run: str, steps: int) -> dict[int, float]:
            overrides = [
                f"model.partial_pretrain={home / 'model'}",
                f"data.train_files={home / 'rows.jsonl'}",
                f"data.cache_dir={home / 'cache'}",
                f"trainer.default_local_dir={home / run}",
                f"trainer.total_training_steps={steps}",
                *("data.val_files=null", "data.max_length=4096", "data.train_batch_size=4", "use_remove_padding=true"),
                *("data.micro_batch_size_per_gpu=4", "optim.lr_scheduler=constant", "optim.warmup_steps_ratio=0"),
                *("trainer.save_freq=10", "trainer.logger=[jsonl]"),
            ]
            call = [sys.executable, "-m", "sft.fsdp_sft_trainer", *overrides]
            done = subprocess.run(call, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-1500:])
            lines = map(json.loads, (home / run / "metrics.jsonl").read_text().splitlines())
            return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}

        began = time.perf_counter()
        whole = train("whole", 20)
        yield "20 steps, with the start", {"seconds": time.perf_counter() - began, "last_loss": whole[20]}
        train("halves", 10)
        resumed = train("halves", 20)
        same = [step for step in whole if resumed.get(step) == whole[step]]
        yield "resumed at step 10", {"equal_losses": len(same), "of": len(whole), "right": len(same) == 20}


@contextmanager
def or_its_error(note: Any, name: str) -> Iterator[None]:
    """Note the error of one variant in its place, so that the next one has its turn."""
    try:
        yield
    except Exception as error:
        note(name, {"error": f"{type(error).__name__}: {str(error).strip()[:300]}"})


def _seconds(work: Any) -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
