from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with one data file and one model directory, outside torchrun, with every package."""
    monkeypatch.setattr(
        "sft.config.checks.packages.find_spec", lambda name: None if name.startswith("no_such") else name
    )
    for name in ("WORLD_SIZE", "RANK", "TORCHELASTIC_RUN_ID", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    return tmp_path


@pytest.fixture
def runnable(here: Path) -> list[str]:
    """The fewest overrides that make the defaults run."""
    return ["model.partial_pretrain=./model", "data.train_files=rows.jsonl", "data.val_files=rows.jsonl"]
