"""Twenty steps whose losses are written down: a change of numbers must be a decision, not an accident.

After such a decision: SFT_WRITE_GOLDEN=1 python -m pytest tests/dist/test_golden.py
"""

import json
import os
from pathlib import Path

import pytest

from tests.launch import read_metrics, succeed

GOLDEN = Path(__file__).parent.parent / "golden" / "losses_20_steps.json"


def test_twenty_steps(base, tmp_path):
    """fp32 on two ranks; 1e-4 leaves room for another CPU's matmuls, and for nothing else."""
    overrides = [*base, "optim.lr=3e-3", "optim.lr_scheduler=cosine", "optim.warmup_steps_ratio=0.1"]
    overrides += ["trainer.total_training_steps=20", f"trainer.default_local_dir={tmp_path / 'run'}"]
    succeed([*overrides, "use_remove_padding=true"], ranks=2, cwd=tmp_path)
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run")]
    if os.environ.get("SFT_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(losses, indent=2) + "\n")
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)
    assert losses[-1] < 0.7 * losses[0]
