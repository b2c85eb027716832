"""Rows per second from messages to samples: ours, TRL's and datasets.map's, on the same rows.

    python scripts/bench_data.py [--rows 5000] [--rounds 3] [--rows-for-memory 0] [--data ROWS.jsonl --tokenizer DIR]

Four fifths of the rows hold one question and one answer, the others five of each, all made here from a seed; so is
the tokenizer, whose ChatML template marks the assistant's words for the rivals. Contestants take turns, each round in
another order; ours is timed from the file to opened samples, the others from opened rows to theirs, imports left out.
Nothing is reported unless all made the same token ids. The rivals live in a virtual environment, made once (--venv).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_material import RIVALS, SEED, make_rows, make_tokenizer, make_venv
from bench_result import spread, write_result
from transformers import AutoTokenizer

from sft.data.cache.cache import cached
from sft.data.cache.store import SampleStore
from sft.data.cache.tokenise import Recipe
from sft.data.order.fit import fit
from sft.data.rows.formats import Columns
from sft.data.rows.source import rows_of_file
from sft.data.types import Supervision

LONGER_THAN_ANY = 1 << 20  # tokens

COLUMNS = Columns("auto", "question", "answer", (), (), False, "messages", "tools", "enable_thinking", "text")


def open_ours(rows: Path, tokenizer: Any, processes: int, cache_dir: Path) -> SampleStore:
    """All that stands between a file and its samples, at a first start as at any later one."""
    source = rows_of_file(rows, COLUMNS, {}, max_length=LONGER_THAN_ANY, say=lambda line: None)
    made = cached(
        source,
        Recipe(tokenizer, {}, Supervision()),
        max_rows=None,
        bad_rows="error",
        cache_dir=cache_dir,
        build_here=True,
        say=lambda line: None,
        num_workers=processes,
    )
    store = SampleStore([made])
    fit(store, max_length=LONGER_THAN_ANY, truncation="error")
    return store


def run_ours(processes: int, rows: Path, tokenizer: Any) -> dict[str, Any]:
    """Both starts timed, and the samples' digest."""
    with tempfile.TemporaryDirectory() as cache_dir:
        few = Path(cache_dir) / "few.jsonl"
        with rows.open() as file:
            few.write_text("".join(next(file) for _ in range(8)))
        open_ours(few, tokenizer, 1, Path(cache_dir))  # imports, and the template's compilation
        started, worked = time.perf_counter(), sum(os.times()[:4])
        open_ours(rows, tokenizer, processes, Path(cache_dir))
        cold, cpu_seconds = time.perf_counter(), sum(os.times()[:4]) - worked
        store = open_ours(rows, tokenizer, processes, Path(cache_dir))
        warm = time.perf_counter()
        ids, trained = hashlib.sha256(), 0
        for sample in (store[n] for n in range(len(store))):
            ids.update(json.dumps(sample.input_ids.tolist()).encode())
            trained += int((sample.loss_weights > 0).sum())
    return {
        "seconds": cold - started,
        "cpu_seconds": cpu_seconds,  # of all processes: what a busy machine leaves alone
        "warm_seconds": warm - cold,
        "samples": len(store),
        "ids": ids.hexdigest(),
        "trained": trained,
        "peak_rss_mb": {
            name: round(resource.getrusage(who).ru_maxrss / 1024)
            for name, who in (("parent", resource.RUSAGE_SELF), ("largest_worker", resource.RUSAGE_CHILDREN))
        },
    }


def serve_ours(rows: Path, tokenizer_dir: Path) -> None:
    """As bench_trl.py: a line "ours PROCESSES" in, a line of JSON out."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    for line in sys.stdin:
        print(json.dumps(run_ours(int(line.split()[1]), rows, tokenizer)), flush=True)


class Contestant:
    """A process that runs what a line asks for."""

    def __init__(self, command: list[str]):
        here = Path(__file__).parent
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{here.parent}:{here}"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def run(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(what, file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            raise SystemExit(f"{what} failed, see above")
        return json.loads(line)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def contest(contestants: dict[str, Contestant], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Every contestant once a round, the first of each round being another. Raises SystemExit if any differ in ids."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    names = list(contestants)
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            results[name].append(contestants[name].run(name))
            print(f"round {k + 1}: {name:8} {results[name][-1]['seconds']:7.2f} s", flush=True)
    made = {name: {(run["samples"], run["ids"], run["trained"]) for run in runs} for name, runs in results.items()}
    if len(set.union(*made.values())) > 1:
        raise SystemExit(f"not all made the same samples: {made}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000, help="rows to make (default 5000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows-for-memory", type=int, default=0, help="also measure the memory for so many short rows")
    parser.add_argument("--data", type=Path, help="rows of your own, a jsonl file with messages")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer of your own; its template needs {%% generation %%}")
    parser.add_argument("--venv", type=Path, default=Path(__file__).parent.parent / "build" / "bench" / "rivals")
    parser.add_argument("--ours", nargs=2, type=Path, help=argparse.SUPPRESS)  # ROWS TOKENIZER: be the contestant
    arguments = parser.parse_args()
    if arguments.ours:
        serve_ours(*arguments.ours)
        return
    rivals, cores = str(make_venv(arguments.venv)), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        rows, tokenizer_dir = arguments.data or Path(scratch) / "rows.jsonl", arguments.tokenizer
        if arguments.data is None:
            make_rows(rows, arguments.rows)
        if tokenizer_dir is None:
            make_tokenizer(tokenizer_dir := Path(scratch) / "tokenizer", rows)
        here, load_before, memory = Path(__file__), os.getloadavg(), None
        ours = Contestant([sys.executable, str(here), "--ours", str(rows), str(tokenizer_dir)])
        others = Contestant([rivals, str(here.with_name("bench_trl.py")), str(rows), str(tokenizer_dir)])
        try:
            of = {"ours": ours, "trl": others, "map": others}
            entries = {f"{name} {n}": who for name, who in of.items() for n in dict.fromkeys((cores, 1))}
            results = contest(entries, arguments.rounds)
        finally:
            ours.end()
            others.end()
        if arguments.rows_for_memory:
            many = Path(scratch) / "many.jsonl"
            make_rows(many, arguments.rows_for_memory, turns_of_every_fifth=1)
            alone = Contestant([sys.executable, str(here), "--ours", str(many), str(tokenizer_dir)])
            memory = alone.run(f"ours {cores}") | {"file_mb": round(many.stat().st_size / 1e6)}
            alone.end()
    count = next(iter(results.values()))[0]["samples"]
    rates = {name: spread([count / run["seconds"] for run in runs]) for name, runs in results.items()}
    ours_all, ours_one, trl_all, trl_one, map_all, map_one = (
        rates[f"{name} {n}"]["median"] for name in of for n in (cores, 1)
    )
    cpu_ms = {name: spread([run["cpu_seconds"] * 1e3 / count for run in runs]) for name, runs in results.items()}
    warm = spread([run["warm_seconds"] * 1e5 / count for run in results[f"ours {cores}"]])
    ratios = {
        "rows_per_s_vs_trl": ours_all / trl_one,  # both as they come: ours on every core, TRL in one process
        "rows_per_s_vs_trl_same_processes": {"1": ours_one / trl_one, str(cores): ours_all / trl_all},
        "rows_per_s_vs_map": ours_all / map_one,
        "rows_per_s_vs_map_same_processes": {"1": ours_one / map_one, str(cores): ours_all / map_all},
    }
    made = {"rows": count, "rounds": arguments.rounds, "seed": SEED, "cores_used": cores, "rivals": RIVALS}
    load = {"before": load_before, "after": os.getloadavg()}
    result = made | {
        "loadavg": load,
        "rows_per_s": rates,
        "cpu_ms_per_row": cpu_ms,
        "ratios": ratios,
        "warm_start_s_per_100k_rows": warm,
    }
    path = write_result("data", "cpu", result | {"memory": memory})
    for name, rate in rates.items():
        told = f"{rate['median']:8,.0f} rows/s  ({rate['min']:,.0f} to {rate['max']:,.0f})"
        print(f"{name:8} {told}  {cpu_ms[name]['median']:.2f} ms of CPU per row")
    print(f"against TRL {ratios['rows_per_s_vs_trl']:.2f}, against map {ratios['rows_per_s_vs_map']:.2f}")
    print(f"second start {warm['median']:.2f} s per 100,000 rows; memory {memory}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
