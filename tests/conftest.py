"""Fixtures for every test."""

from __future__ import annotations

import gc
import os
from pathlib import Path

# Before torch is imported: threads cost tiny matrices more than they bring, and two workers have two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tests.launch import REPOSITORY

# The same rows in every run, so that a change is what makes a test red; EXPLORE=1 draws others. Time is no criterion:
# another file is tested at the same time.
settings.register_profile(
    "tests", derandomize="EXPLORE" not in os.environ, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

if not Path("/dev/nvidia0").exists():
    # Triton's kernels run in its interpreter then, on tensors of the CPU. It is to know before it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_finish() -> None:
    """Let collections, of which each run makes one at its end, pass over what was imported: half a million objects."""
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory with the real data and tokenizers: $SFT_SHARED, ../shared if unset.

    Skips where there is none; in CI, which promises it by naming it in SFT_SHARED, its absence is a failure.
    """
    promised = os.environ.get("SFT_SHARED")
    path = (REPOSITORY / (promised or "../shared")).resolve()
    if not path.is_dir():
        if promised and "CI" in os.environ:
            pytest.fail(f"SFT_SHARED={promised} leads to {path}, which is not there")
        pytest.skip(f"no real data at {path}; set SFT_SHARED to run this test")
    return path
