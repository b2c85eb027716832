"""What is no checkpoint, hurt: bits of the token cache, files that change, full disks, power cuts, foreign lines."""

import json
import random
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest

from sft.checkpoint import ledger
from sft.data.cache import cache
from sft.data.cache.store import SampleStore
from sft.data.cache.tokenise import Recipe
from sft.data.rows.source import rows_of_file
from sft.data.types import Supervision
from sft.errors import MishapError
from tests.assets import tiny_tokenizer, write_jsonl
from tests.fault.faults import FAULTS
from tests.rows import COLUMNS

FLIPS, FULL = "bit flipped in the token cache", "full disk, token cache"
CHANGED = "rows change while they are tokenised"
CUT, FOREIGN = "power cut after tokenising", "foreign line in the ledger"
SIZES = 15  # of the disk, at most


def some_rows(dice, count=40):
    return [{"question": f"What is {dice.random()}?", "answer": f"{dice.random()}."} for _ in range(count)]


def opened(path, cache_dir, said):
    """The digests of all samples, from the cache."""
    rows = cache.cached(
        rows_of_file(path, COLUMNS, {}, max_length=1000, say=lambda line: None),
        Recipe(tiny_tokenizer(), {}, Supervision()),
        max_rows=None,
        bad_rows="error",
        cache_dir=cache_dir,
        build_here=True,
        say=said.append,
    )
    return SampleStore([rows]).digests.copy()


def caches_in(cache_dir):
    return [path for path in cache_dir.iterdir() if path.is_dir()]


def test_flipped_bits_are_found_and_the_rows_tokenised_again(tmp_path, rows):
    dice, row, said = random.Random(1), rows[FLIPS], []
    path, cache_dir = write_jsonl(tmp_path / "rows.jsonl", some_rows(dice)), tmp_path / "cache"
    expected = opened(path, cache_dir, said)
    for _ in range(FAULTS):
        (directory,) = caches_in(cache_dir)
        file = dice.choice(sorted(directory.iterdir()))
        damaged = bytearray(file.read_bytes())
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        file.write_bytes(damaged)
        del said[:]
        row.injected += 1
        row.damaged += 1
        assert np.array_equal(opened(path, cache_dir, said), expected)
        assert sum("is damaged" in line for line in said) == 1
        row.detected += 1
        row.survived += 1


def test_rows_that_change_meanwhile_fill_no_cache(tmp_path, rows, monkeypatch):
    dice, row = random.Random(2), rows[CHANGED]
    path, cache_dir, tokenise = tmp_path / "rows.jsonl", tmp_path / "cache", cache.tokenise
    for number in range(FAULTS):
        first, put_back = write_jsonl(path, some_rows(dice)).read_bytes(), number % 2 == 1

        def somebody_writes(rows, first=first, put_back=put_back, **options):
            with path.open("ab") as file:
                file.write(first[: dice.randrange(1, len(first))])
            if put_back:
                path.write_bytes(first)
            return tokenise(rows, **options)

        row.injected += 1
        with monkeypatch.context() as patch, pytest.raises(MishapError, match="was changed while it was tokenised"):
            patch.setattr(cache, "tokenise", somebody_writes)
            opened(path, cache_dir, [])
        assert caches_in(cache_dir) == []
        row.survived += 1


@contextmanager
def files_no_larger_than(size):
    """As a full disk: what is written beyond fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_message_and_no_truncated_file(tmp_path, rows):
    dice, row = random.Random(3), rows[FULL]
    path = write_jsonl(tmp_path / "rows.jsonl", some_rows(dice, 300))
    expected = opened(path, tmp_path / "whole", [])
    (whole,) = caches_in(tmp_path / "whole")
    largest = max(file.stat().st_size for file in whole.iterdir())
    for size in np.linspace(0, largest - 1, min(SIZES, max(3, FAULTS)), dtype=int).tolist():
        cache_dir = tmp_path / f"cache_{size}"
        row.injected += 1
        with files_no_larger_than(size), pytest.raises(MishapError, match=r"data\.cache_dir=.* cannot be written"):
            opened(path, cache_dir, [])
        assert caches_in(cache_dir) == []
        assert np.array_equal(opened(path, cache_dir, []), expected), "with room again"
        row.survived += 1


def test_after_a_power_cut_the_cache_is_whole_or_built_again(tmp_path, rows, disk, monkeypatch):
    dice, row, (place, cut_power) = random.Random(4), rows[CUT], disk
    for number in range(FAULTS):
        path = write_jsonl(tmp_path / "rows.jsonl", some_rows(dice))
        expected = opened(path, tmp_path / f"elsewhere_{number}", [])
        waits_for_disk = number % 2 == 0  # as for many rows
        monkeypatch.setattr(cache, "ROWS_WORTH_THE_DISK", 0 if waits_for_disk else 1024)
        opened(path, place / "cache", [])
        row.injected += 1
        cut_power()
        said = []
        assert np.array_equal(opened(path, place / "cache", said), expected)
        assert not (waits_for_disk and said), "what said that it is there is there"
        row.survived += 1


def test_foreign_lines_of_a_ledger_are_passed_over(tmp_path, rows):
    dice, row, path = random.Random(5), rows[FOREIGN], tmp_path / ledger.LEDGER
    ours = {
        "name": "step-4", "step": 4, "data_consumed": 32, "state_path": "global_step_4/state",
        "sampler_path": "global_step_4/huggingface", "source_job_id": "job", "base_model": "base",
    }  # fmt: skip
    values = [None, True, -1, 1e400, "x", "../x", "/etc/passwd", [], {}, "global_step_5/huggingface", [[[]]] * 3]
    for _ in range(FAULTS):
        foreign = dict(ours)
        key = dice.choice([key for key in ours if key not in ("source_job_id", "base_model")])
        foreign[key] = dice.choice(values)
        line = json.dumps(foreign)
        line = dice.choice([line, line[: dice.randrange(2, len(line))], "[" * 50_000])
        path.write_text(f"{json.dumps(ours)}\n{line}\n")
        row.injected += 1
        entries, problems = ledger.read(path)
        assert entries == [ours] and len(problems) == 1, line[:200]
        row.survived += 1
