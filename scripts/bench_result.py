"""What every benchmark writes: its figures, and what it takes to get them again."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks"
PICTURES = ROOT / "docs" / "pictures"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "pyarrow", "numpy")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def write_result(name: str, device: str, result: dict[str, Any], *, out: Path | None = None) -> Path:
    """Write `out`, or else benchmarks/<name>_<device>_<date>.json: the facts of the run, then the result."""
    facts = facts_of_run(device)
    RESULTS.mkdir(exist_ok=True)
    path = out or RESULTS / f"{name}_{device}_{facts['date']}.json"
    path.write_text(json.dumps(facts | result, indent=2) + "\n")
    return path


def facts_of_run(device: str) -> dict[str, Any]:
    """Return what it takes to get figures again: command, commit, versions, device."""
    return {
        # Where things lie on this machine is nobody's business.
        "command": [Path(word).name if Path(word).is_absolute() else word for word in (sys.executable, *sys.argv)],
        "date": date.today().isoformat(),
        "commit": _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "device": device,
        "cpu": {"cores": os.cpu_count(), "machine": platform.machine()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
