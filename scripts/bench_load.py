"""How long a model takes to load, and how much memory: our sharded load, and from_pretrained on every rank.

    python scripts/bench_load.py [--gigabytes 1.2] [--ranks 1 2 4] [--rounds 3]

Random weights in a Llama's shape, bf16 in the files and fp32 in memory. Both ways in rotation, each in fresh processes
that meet on gloo; the files are in the page cache. Of every rank is taken how much its own memory (RssAnon of Linux:
pages of mapped files are the page cache's) grew at most between the imports and the loaded model; the slowest rank
counts, and the one that grew most.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from bench_result import spread, write_result

WAYS = ("sharded", "from_pretrained")
WIDTH = 1024


def make_model(directory: Path, gigabytes: float) -> float:
    """Write a model of about that size in fp32, as bf16, which is how models come; returns its size in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    per_layer = 4 * WIDTH**2 + 3 * WIDTH * 4 * WIDTH
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=max(1, round(gigabytes * 1e9 / 4 / per_layer)),
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.bfloat16()
    model.save_pretrained(directory)
    return sum(weight.numel() for weight in model.parameters()) * 4 / 1e9


def load(way: str, directory: Path) -> dict[str, float]:
    """Load once on this rank, as the trainer does or as a script would; seconds, and the growth of its peak memory."""
    from sft.model.attention import Available, choose_attention
    from sft.model.load import build_skeleton, decoder_layers, load_weights
    from sft.model.pretrained import load_config
    from sft.parallel.fsdp import Sharding, shard
    from sft.parallel.mesh import build_mesh
    from sft.parallel.world import World, process_group

    world = World.from_environment()
    with process_group(world):
        config = load_config(directory, trust_remote_code=False)
        # A first, small model: imports and what libraries set up once are no part of either way.
        config.num_hidden_layers, layers = 1, config.num_hidden_layers
        attention = choose_attention(config, wanted="auto", packed=True, half=True, here=Available("cpu"))
        build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
        config.num_hidden_layers = layers
        torch.distributed.barrier()
        memory, started = WatchedMemory(), time.perf_counter()
        if way == "sharded":
            model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
            shard(model, decoder_layers(model), build_mesh(world.size, "cpu").fsdp, Sharding(torch.bfloat16))
            load_weights(model, directory, world.device)
        else:
            from transformers import AutoModelForCausalLM

            model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            shard(model, list(model.model.layers), build_mesh(world.size, "cpu").fsdp, Sharding(torch.bfloat16))
        seconds = time.perf_counter() - started
        gigabytes = memory.most_grown() / 1e9
        del model
    return {"seconds": seconds, "gigabytes": gigabytes}


class WatchedMemory:
    """A thread that looks at this process's own memory every few milliseconds."""

    def __init__(self):
        self._before = self._most = own_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._most = max(self._most, own_bytes())

    def most_grown(self) -> int:
        """Bytes by which it grew at most since the beginning."""
        self._done.set()
        self._thread.join()
        return max(self._most, own_bytes()) - self._before


def own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def measure(way: str, directory: Path, ranks: int) -> dict[str, float]:
    """Return the slowest time and the largest memory of the ranks, measured in fresh processes."""
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        worker = [__file__, "--worker", way, "--model", str(directory), "--results", results]
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)), "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([*command, *worker], check=True, env=os.environ | threads, capture_output=True)
        found = [json.loads(file.read_text()) for file in Path(results).glob("*.json")]
    return {key: max(rank[key] for rank in found) for key in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.2, help="size of the model in fp32 (default 1.2)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        found = load(arguments.worker, arguments.model)
        (arguments.results / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
        return

    with tempfile.TemporaryDirectory() as directory:
        size = make_model(Path(directory), arguments.gigabytes)
        turns = [(ranks, way) for ranks in arguments.ranks for way in WAYS]
        rounds = [
            {turn: measure(turn[1], Path(directory), turn[0]) for turn in (turns if number % 2 else turns[::-1])}
            for number in range(arguments.rounds)
        ]
    loads = {
        str(ranks): {
            way: {key: spread([found[ranks, way][key] for found in rounds]) for key in ("seconds", "gigabytes")}
            for way in WAYS
        }
        for ranks in arguments.ranks
    }
    ratios = {
        f"{key}_vs_from_pretrained_{ranks}_ranks": by_way["sharded"][key]["median"]
        / by_way["from_pretrained"][key]["median"]
        for ranks, by_way in loads.items()
        for key in ("seconds", "gigabytes")
    }
    path = write_result("load", "cpu", {"gigabytes": size, "loads": loads, "ratios": ratios})
    print(f"a model of {size:.2f} GB in fp32; of the slowest rank, and of the one whose memory grew most:")
    for ranks, by_way in loads.items():
        for way, found in by_way.items():
            seconds, grown = found["seconds"], found["gigabytes"]
            print(
                f"{ranks} ranks  {way:16} {seconds['median']:6.2f} s ({seconds['min']:.2f} to {seconds['max']:.2f})  "
                f"{grown['median']:5.2f} GB ({grown['min']:.2f} to {grown['max']:.2f})"
            )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
