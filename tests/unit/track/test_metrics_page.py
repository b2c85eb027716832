"""docs/metrics.md names every number of metrics.jsonl, and no other."""

from __future__ import annotations

import ast
import re

import pytest

from sft import load_config, run
from sft.track.files import read_metrics
from sft.track.metrics import Peak
from tests.assets import tiny_model_dir, write_jsonl
from tests.launch import REPOSITORY

NAME = re.compile(r"(train|perf|val|data|track)/[a-z_]+(/[a-z_]+)*")


@pytest.fixture(scope="module")
def documented() -> set[str]:
    """The first column of every table of the page."""
    page = (REPOSITORY / "docs/metrics.md").read_text()
    return set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE))


def named_in_code() -> set[str]:
    """Return every metric that a string of sft spells; what is filled in behind a slash is <entry>."""
    names = set()
    for path in (REPOSITORY / "sft").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "<entry>" for part in node.values]
                if re.fullmatch(r"(train|perf|val|data)/[a-z_]+/<entry>", name := "".join(map(str, parts))):
                    names.add(name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
                names.add(node.value)
    return names


def test_what_the_code_names_is_on_the_page(documented):
    assert named_in_code() == documented - {"step", "skipped"}


def test_what_a_run_writes_is_on_the_page_and_the_other_way_round(documented, tmp_path, monkeypatch):
    monkeypatch.setattr("sft.train.report.device_peak", lambda *_: Peak(1e12, "as of a GPU whose data sheet is known"))
    rows = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}."} for k in range(4)]
    files = [str(write_jsonl(tmp_path / f"{name}.jsonl", rows)) for name in ("one", "two")]
    model = tiny_model_dir(tmp_path / "model", kind="qwen3_moe", num_experts=4, num_experts_per_tok=2)
    overrides = [
        f"model.partial_pretrain={model}",
        "model.router_aux_loss=0.01",
        f"data.mixture=[{','.join(files)}]",
        f"data.val_files=[{','.join(files)}]",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.train_batch_size=4",
        "optim.groups=[{match: norm, lr: x0.5, name: one}]",
        "trainer.total_training_steps=2",
        "trainer.save_freq=0",
        "trainer.generate_metric=exact_match",
        "trainer.generate_max_new_tokens=1",
        f"trainer.default_local_dir={tmp_path / 'run'}",
    ]
    run(load_config(overrides, warn=print))
    records, _ = read_metrics(tmp_path / "run" / "metrics.jsonl")
    written = {re.sub(r"/(one|two)$", "/<entry>", name) for record in records for name in record}
    # No step of a healthy run is skipped (tests/unit/track/test_track.py), and a run has one metric of its answers.
    assert written == documented - {"skipped", "val/contains", "val/rouge"}
