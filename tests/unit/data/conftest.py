"""Fixtures of the data room's tests."""

import pytest

from sft.data.cache.cache import cached
from sft.data.cache.tokenise import Recipe
from sft.data.rows.source import rows_of_file
from sft.data.types import Supervision
from tests.assets import tiny_tokenizer
from tests.rows import COLUMNS

ASSISTANT = Supervision()


@pytest.fixture
def open_file(tmp_path):
    """cached() with everything filled in; what it says and remarks is in .said."""

    def open_file(
        path, *, tokenizer=None, columns=COLUMNS, options=None, max_rows=None, bad_rows="error", max_length=1000,
        build_here=True, supervision=ASSISTANT, num_workers=1, cache_dir=tmp_path / "cache",
    ):  # fmt: skip
        options = options or {}
        rows = cached(
            rows_of_file(path, columns, options, max_length=max_length, say=lambda verdict: None),
            Recipe(tokenizer or tiny_tokenizer(), options, supervision),
            max_rows=max_rows,
            bad_rows=bad_rows,
            cache_dir=cache_dir,
            build_here=build_here,
            say=open_file.said.append,
            num_workers=num_workers,
        )
        open_file.said += rows.remarks()
        return rows

    open_file.said = []
    return open_file
