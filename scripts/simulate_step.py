"""Simulate training steps of large models on GPUs that are not there, and compare their memory with the estimate.

    python scripts/simulate_step.py [--cases qwen3-0.6b 8b-lora ...] [--write]

Runs the trainer's own step - sharding, forward, backward, optimizer - on tensors without memory, as one rank of ranks
that are not there, and prints for each case the most memory a rank holds at a time beside the estimate of
`python -m sft.inspect`, its collectives, and how often the host waits. --write puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from simulated_device import DEVICE, SimulatedDevice, simulated_ranks
from transformers import AutoConfig

from sft import fsdp_sft_trainer as trainer
from sft.config import SftConfig
from sft.config.compose import compose
from sft.config.door import checked
from sft.data.order.collate import collate
from sft.model import place as placing
from sft.model.attention import Available, choose_attention
from sft.model.memory import Memory, estimate, gigabytes
from sft.model.pretrained import load_config
from sft.parallel.mesh import build_mesh
from sft.parallel.ulysses import split_tokens
from sft.train.build import Job
from sft.train.forecast_memory import load_of, size_of
from sft.train.optim import OPTIMIZERS
from sft.types import Batch, Sample, TrainState

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- simulated steps: scripts/simulate_step.py --write -->", "<!-- end of simulated steps -->"
H100 = Available("cuda", (9, 0))


@dataclass(frozen=True)
class Case:
    """A model, and how it is trained."""

    architecture: dict[str, Any]
    ranks: int
    tokens: int  # of a micro-batch of one rank; half of them train
    overrides: tuple[str, ...] = ()
    micro_batches: int = 1
    samples: int = 8  # of a micro-batch


QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151_936, "head_dim": 128}
QWEN3_600M = QWEN3 | {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
QWEN3_8B = QWEN3 | {
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
QWEN3_30B_A3B = QWEN3 | {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
LLAMA_70B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
CHECKPOINTED = "model.enable_gradient_checkpointing=true"
CASES = {
    "Qwen3-0.6B": Case(QWEN3_600M, ranks=1, tokens=8192),
    "Qwen3-8B, LoRA": Case(QWEN3_8B, ranks=1, tokens=4096, overrides=("model.lora_rank=32",)),
    "Qwen3-8B": Case(QWEN3_8B, ranks=8, tokens=8192, overrides=(CHECKPOINTED,)),
    "Qwen3-30B-A3B": Case(QWEN3_30B_A3B, ranks=8, tokens=8192, overrides=(CHECKPOINTED,)),
    "Llama-3-70B": Case(LLAMA_70B, ranks=64, tokens=8192, overrides=(CHECKPOINTED,)),
}


@dataclass(frozen=True)
class Simulated:
    """What a step of one rank took, and what the estimate says that it takes."""

    peak_bytes: int
    held_bytes: int  # between steps
    estimated: Memory
    collectives: dict[str, int]
    collective_bytes: dict[str, int]
    host_reads: int


def simulate(case: Case, home: Path) -> Simulated:
    """Train two steps of `case`, the first of which makes the optimizer's state, and return what the second one took.

    home: a directory for the model's config.json
    """
    AutoConfig.for_model(**case.architecture).save_pretrained(home)
    config = configuration(case, home)
    attention = choose_attention(
        load_config(home, trust_remote_code=False),
        wanted=config.model.attn_implementation,
        packed=True,
        half=True,
        here=H100,
    )
    model, _ = placing.build_bare_model(config, home, attention)
    torch.nn.Module.to(model, DEVICE)  # its buffers as well
    load = load_of(
        config,
        ranks=case.ranks,
        tokens=case.tokens,
        logits=case.tokens // 2,
        device="cuda",
    )
    once = config.model.fsdp_config.reduce_gradients != "every_micro_batch"
    several = case.micro_batches > 1
    load = replace(load, several_micro_batches=several, whole_gradients=several and once)
    estimated = estimate(size_of(config, model), load)
    with simulated_ranks(case.ranks):
        job = job_of(config, model, home, case.ranks, reduce_once=once)
        with SimulatedDevice(model) as device:
            for _ in range(2):
                device.restart_counts()
                trainer.train_step(job, batches(case, job), [1.0])
        return Simulated(
            device.peak_bytes,
            device.bytes,
            estimated,
            dict(device.collectives),
            dict(device.collective_bytes),
            len(device.host_reads),
        )


def configuration(case: Case, home: Path) -> SftConfig:
    """Return the configuration of `case` as the trainer would have it; rows and weights need not be there."""
    rows = home / "rows.jsonl"
    rows.touch()
    overrides = [
        f"model.partial_pretrain={home}",
        f"data.train_files={rows}",
        "data.val_files=null",
        f"trainer.default_local_dir={home / 'run'}",
        "use_remove_padding=true",
        *case.overrides,
    ]
    unusable: dict[str, str] = {}
    values = compose(overrides, unusable)
    return checked(values, overrides, print, world_size=case.ranks, unusable=unusable, needs_weights=False)


def job_of(
    config: SftConfig,
    model: Any,
    home: Path,
    ranks: int,
    *,
    reduce_once: bool,
    device: torch.device = DEVICE,
    fill: Callable[[Any], None] = lambda _: None,
) -> Job:
    """Return what a step asks of a job, the model sharded by the trainer's own `place`.

    fill: gives the sharded model memory and numbers, in the place of files
    """
    sp, replicas = config.ulysses_sequence_parallel_size, config.model.fsdp_config.dp_replicate
    mesh = build_mesh(ranks, device.type, sp_size=sp, dp_replicate=replicas)
    sharding = placing.sharding_of(config.model.fsdp_config, reduce_once=reduce_once)
    world: Any = SimpleNamespace(rank=0, size=ranks, device=device)
    no_weights = mock.patch.object(placing, "load_weights", lambda model, *_, **__: fill(model))
    no_adapters = mock.patch("sft.model.lora.start_adapters", lambda *_, **__: None)
    no_values = mock.patch.multiple(placing, prove_separation=lambda *_: None, prove_causality=lambda *_: None)
    with no_weights, no_adapters, no_values:
        placing.place(model, config, home, mesh, sharding, world, grown=False)
    known: dict[str, Any] = {
        "model": model,
        "optimizer": OPTIMIZERS[config.optim.name].build(model, config.optim),
        "config": config,
        "world": world,
        "sharding": sharding,
        "mesh": mesh,
        "state": TrainState(),
        "plan": SimpleNamespace(total_steps=10),
    }
    others: dict[str, Any] = dict.fromkeys(part.name for part in fields(Job))
    return Job(**(others | known))  # a step asks for nothing else


def batches(case: Case, job: Job) -> list[Batch]:
    """Return the micro-batches of one step: samples of one length, whose second halves train, Σ w = 1."""
    length = case.tokens * job.mesh.sp_size // case.samples
    weights = np.zeros(length, np.float32)
    weights[length // 2 :] = 1 / (case.micro_batches * case.samples * (length - length // 2))
    batch = collate([Sample(np.zeros(length, np.int32), weights)] * case.samples, packed=True, pad_id=0)
    part = split_tokens(batch, part=job.mesh.sp_rank, parts=job.mesh.sp_size)
    return [part] * case.micro_batches


GATHERED, SUMMED = "_allgather_base_", "_reduce_scatter_base_"


def table(found: dict[str, Simulated]) -> str:
    """Write what was found as Markdown."""
    lines = [
        "| | ranks | tokens per rank | peak, simulated | estimate | | fullest when | gathered | summed | host waits |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, step in found.items():
        case, peak, estimated = CASES[name], step.peak_bytes, step.estimated
        cells = [
            name + (", layers checkpointed" if CHECKPOINTED in case.overrides else ""),
            case.ranks,
            f"{case.tokens:,}",
            gigabytes(peak),
            gigabytes(estimated.total),
            f"{estimated.total / peak - 1:+.1%}",
            estimated.moment,
            *(_traffic(step, kind) for kind in (GATHERED, SUMMED)),
            step.host_reads,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _traffic(step: Simulated, kind: str) -> str:
    calls = step.collectives.get(kind, 0)
    return f"{gigabytes(step.collective_bytes[kind])} in {calls} calls" if calls else "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    arguments = parser.parse_args()
    found = {}
    for name in arguments.cases:
        with tempfile.TemporaryDirectory() as home:
            found[name] = simulate(CASES[name], Path(home))
        print(f"{name}: {gigabytes(found[name].peak_bytes)}; estimate: {found[name].estimated}", flush=True)
    print(f"\n{table(found)}")
    if arguments.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}")


if __name__ == "__main__":
    main()
