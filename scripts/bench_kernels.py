"""What the parts of a step cost on this device: matmuls, attention by every kernel, our loss against Liger's, layers.

    python scripts/bench_kernels.py [--parts limits attention loss layers] [--tiny]

The first thing to run on a new kind of GPU: it says which kernels there are, which is the fastest, how many rows of
logits the loss should hold, and what compiling layers wins. The sizes are Qwen3-0.6B's; --tiny, and a CPU, take small
ones, which only show that it runs. What fails is written down with its error, and the rest goes on. Milliseconds are of
forward and backward, median and range. Writes benchmarks/kernels_<device>_<date>.json.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from bench_result import spread, write_result
from transformers import Qwen3Config

from sft.model import head
from sft.model.attention import Available, choose_attention
from sft.model.attention.choice import KERNELS
from sft.model.attention.interface import load_kernel
from sft.model.attention.kernels import Samples, Scores
from sft.model.load import build_skeleton, decoder_layers
from sft.model.loss_form import LogitForm
from sft.parallel.activation import checkpoint_activations, compile_layers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HERE = Available.on(DEVICE)
REPEATS = 10
BIG = {"tokens": 8192, "width": 1024, "heads": 16, "kv_heads": 8, "head_dim": 128, "vocabulary": 151_936, "layers": 4}
TINY = {"tokens": 256, "width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocabulary": 1000, "layers": 2}
CHUNKS = (512, 1024, 2048, 4096, 8192)


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    """Milliseconds of `work`, the first call (which may compile) apart, and the most memory that it took at a time."""
    try:
        first, *_ = durations = [_milliseconds(work) for _ in range(3)]
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        durations = [_milliseconds(work) for _ in range(REPEATS)]
        peak = {"peak_gb": (torch.cuda.max_memory_allocated() - before) / 1e9} if DEVICE.type == "cuda" else {}
        return {"ms": spread(durations), "first_ms": first} | peak
    except Exception as error:  # one kernel that does not run here must not hide the others
        return {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


def _milliseconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - started)


def with_rate(found: dict[str, Any], name: str, amount: float) -> dict[str, Any]:
    """Return the same, and how much of `amount` that is per second."""
    return found if "error" in found else found | {name: amount / (found["ms"]["median"] / 1e3)}


def ragged_lengths(tokens: int) -> list[int]:
    """Lengths of samples that fill a row: a twentieth of it in the mean, some much longer."""
    rng, lengths = random.Random(1), []
    while sum(lengths) < tokens:
        lengths.append(min(1 + int(rng.expovariate(20 / tokens)), tokens - sum(lengths)))
    return lengths


def limits(size: dict[str, int]) -> dict[str, Any]:
    """Measure what the device reaches in matmuls of the model's shapes and in a large one, and in copies."""
    tokens, width = size["tokens"], size["width"]
    shapes = {
        "mlp": (tokens, width, 3 * width),
        "head": (2048, width, size["vocabulary"]),
        "square": (tokens, tokens, tokens),
    }
    told = {}
    for name, (m, k, n) in shapes.items():
        a, b = (torch.randn(shape, device=DEVICE, dtype=torch.bfloat16) for shape in ((m, k), (k, n)))
        told[f"matmul_{name}"] = with_rate(timed(lambda a=a, b=b: a @ b), "tflops", 2e-12 * m * k * n)
    source = torch.zeros(tokens * size["vocabulary"] // 2, device=DEVICE, dtype=torch.bfloat16)
    told["copy"] = with_rate(timed(source.clone), "tb_per_s", 2e-12 * source.nbytes)
    return told


@contextmanager
def only_cudnn() -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        yield


def attention(size: dict[str, int]) -> dict[str, Any]:
    """Every kernel on one sample of half a row, of a whole row, and on a row of many samples."""
    tokens, told = size["tokens"], {}
    rows = {"half": [tokens // 2], "whole": [tokens], "ragged": ragged_lengths(tokens)}
    for row, lengths in rows.items():
        heads = (size["heads"], size["kv_heads"], size["kv_heads"])
        q, k, v = (
            torch.randn(sum(lengths), h, size["head_dim"], device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
            for h in heads
        )
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=DEVICE)
        samples, scores = Samples(tuple(lengths), ends, max(lengths)), Scores(size["head_dim"] ** -0.5)
        direction = torch.randn_like(q)

        def work(name: str, q=q, k=k, v=v, samples=samples, scores=scores, direction=direction) -> None:
            output = load_kernel(name)(q, k, v, samples, scores)
            torch.autograd.grad(output, (q, k, v), direction)

        # Two products forward and five backward, of half of every sample's square.
        flops = 7 * sum(n * n for n in lengths) * size["heads"] * size["head_dim"]
        if row != "ragged" and DEVICE.type == "cuda":
            with only_cudnn():
                told[f"{row}/sdpa_cudnn"] = with_rate(timed(lambda: work("sdpa")), "tflops", flops / 1e12)
        for name in KERNELS:
            told[f"{row}/{name}"] = with_rate(timed(lambda name=name: work(name)), "tflops", flops / 1e12)
    return told


def loss(size: dict[str, int]) -> dict[str, Any]:
    """Ours by rows of logits alive at a time, Liger's, and cross entropy of whole logits; every token supervised."""
    rows, vocabulary = size["tokens"], size["vocabulary"]
    hidden, weight = (
        torch.randn(n, size["width"], device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        for n in (rows, vocabulary)
    )
    labels, weights = torch.randint(vocabulary, (rows,), device=DEVICE), torch.ones(rows, device=DEVICE)

    def ours() -> None:
        ce, _, _ = head.linear_ce_sum(hidden, weight, None, labels, weights, LogitForm())
        torch.autograd.grad(ce, (hidden, weight))

    def whole() -> None:
        ce = F.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum")
        torch.autograd.grad(ce, (hidden, weight))

    def liger() -> None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # pyright: ignore[reportMissingImports]

        ce = LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, hidden, labels)
        torch.autograd.grad(ce, (hidden, weight))

    told, default = {}, dict(head.CHUNK)
    for chunk in (n for n in CHUNKS if n <= max(rows, CHUNKS[0])):
        head.CHUNK.update(cpu=chunk, gpu=chunk)
        told[f"ours/{chunk}"] = timed(ours)
    head.CHUNK.update(default)
    return told | {"liger": timed(liger), "whole_logits": timed(whole)}


def layers(size: dict[str, int]) -> dict[str, Any]:
    """Measure decoder layers on a row of many samples: as they are, computed again in backward, compiled."""
    config = Qwen3Config(
        vocab_size=1000,
        hidden_size=size["width"],
        intermediate_size=3 * size["width"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv_heads"],
        head_dim=size["head_dim"],
    )
    chosen = choose_attention(config, wanted="auto", packed=True, half=True, here=HERE)
    lengths = ragged_lengths(size["tokens"])
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=DEVICE)
    row: dict[str, Any] = {
        "input_ids": torch.zeros(1, size["tokens"], dtype=torch.int64, device=DEVICE),
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None].to(DEVICE),
        "sample_lengths": tuple(lengths),
        "cu_seqlens": ends,
        "max_seqlen": max(lengths),
    }
    told: dict[str, Any] = {"attention": str(chosen)}
    # Compiling on a CPU takes minutes and says nothing about a GPU.
    for name in ("eager", "selective", "compiled", "compiled, selective")[: 4 if DEVICE.type == "cuda" else 2]:
        torch.manual_seed(0)
        model = build_skeleton(config, attention=chosen, dtype=torch.bfloat16, trust_remote_code=False)
        model.to_empty(device=DEVICE)
        model.init_weights()
        if "selective" in name:
            checkpoint_activations(decoder_layers(model), selective=True)
        if "compiled" in name:
            compile_layers(decoder_layers(model))

        def work(model: Any = model) -> None:
            model.base_model(use_cache=False, **row).last_hidden_state.float().square().mean().backward()
            model.zero_grad()

        told[name] = with_rate(timed(work), "tokens_per_s_and_layer", size["tokens"] * size["layers"])
    return told


PARTS = {"limits": limits, "attention": attention, "loss": loss, "layers": layers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", default=DEVICE.type == "cpu")
    arguments = parser.parse_args()
    size = TINY if arguments.tiny else BIG
    from torch.nn.attention.varlen import varlen_attn

    facts = {
        "size": size,
        "available": vars(HERE) | {"liger": find_spec("liger_kernel") is not None},
        "varlen_attn": str(inspect.signature(varlen_attn)),
    }
    found = {}
    for part in arguments.parts:
        found[part] = PARTS[part](size)
        for name, told in found[part].items():
            print(f"{part:10} {name:28} {json.dumps(told)}", flush=True)
    device = "cpu" if DEVICE.type == "cpu" else torch.cuda.get_device_name().lower().replace(" ", "-")
    print(f"written to {write_result('kernels', device, facts | found)}")


if __name__ == "__main__":
    main()
