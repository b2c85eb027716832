"""Tasks of lm-evaluation-harness, over local files; what is not installed or not known is said before any work."""

from __future__ import annotations

import json
import sys

import pytest

from sft.config.problems import ConfigError
from sft.errors import InputError
from sft.evaluate.__main__ import main
from sft.evaluate.harness import ask_harness, numbers_in
from sft.evaluate.options import Options, take_options
from sft.evaluate.run import check
from sft.parallel.world import World
from tests.assets import tiny_model_dir, write_jsonl

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {max_gen_toks: 4, until: []}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def test_a_task_of_ones_own_over_a_local_file(tmp_path, monkeypatch, capsys):
    pytest.importorskip("lm_eval", reason="the extra harness is not installed")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"question": f"{k} + {k}?", "answer": str(2 * k)} for k in range(3)])
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "sums.yaml").write_text(TASK.replace("ROWS", str(rows)))
    model, out = tiny_model_dir(tmp_path / "model"), tmp_path / "numbers.json"
    asked = [
        f"model.partial_pretrain={model}",
        "+evaluate.harness=[sums]",
        f"+evaluate.harness_path={tmp_path / 'tasks'}",
    ]
    monkeypatch.setattr(sys, "argv", ["evaluate", *asked, f"+evaluate.metrics={out}", "+evaluate.harness_limit=2"])
    main()
    found = json.loads(out.read_text())
    assert found["harness/sums"]["exact_match"] == 0.0  # a model of random weights
    assert "harness/sums: exact_match=0" in capsys.readouterr().out

    with pytest.raises(InputError, match=r"evaluate.harness: summs is no task of lm-eval .*harness_path=DIR"):
        ask_harness(Options(harness=("summs",)), model, World(0, 1, 0), trust_remote_code=False)


def test_the_harness_is_asked_for_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("sft.config.checks.packages.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"evaluate.harness=gsm8k,ifeval needs lm-eval.*pip install lm-eval"):
        take_options(["model.partial_pretrain=org/name", "+evaluate.harness=[gsm8k,ifeval]"])


def test_it_runs_on_one_rank_and_needs_no_validation_rows(tmp_path):
    from sft.config import load_config

    rows = write_jsonl(tmp_path / "rows.jsonl", [{"question": "?", "answer": "!"}])
    config = load_config(["model.partial_pretrain=org/name", f"data.train_files={rows}"], warn=lambda told: None)
    check(config, Options(harness=("gsm8k",)), World(0, 1, 0))
    with pytest.raises(InputError, match="leave torchrun out"):
        check(config, Options(harness=("gsm8k",)), World(0, 2, 0))


def test_numbers_keep_the_name_of_their_filter():
    result = {
        "alias": "gsm8k",
        "exact_match,strict-match": 0.5,
        "acc,none": 1,
        "acc_stderr,none": "N/A",
        "sample_len": 3,
    }
    assert numbers_in(result) == {"exact_match/strict-match": 0.5, "acc": 1.0}
