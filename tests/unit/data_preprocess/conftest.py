"""What the tests of all corpora need."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch import REPOSITORY


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """python -m data_preprocess.{corpus} {arguments}, as a user starts it."""

    def run(corpus: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", f"data_preprocess.{corpus}", *map(str, arguments)]
        return subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True)

    return run
