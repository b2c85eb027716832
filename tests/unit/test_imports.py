"""Imports without garbage collection, which goes on afterwards, also where an import fails; and none for nothing."""

import gc
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from sft.imports import without_collections
from tests.launch import clean_environment


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_nothing_is_collected_inside_and_what_was_made_is_left_alone_afterwards():
    gc.unfreeze()
    with without_collections():
        assert not gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() > 0


def test_a_failing_import_leaves_collection_on():
    with pytest.raises(ImportError), without_collections():
        raise ImportError
    assert gc.isenabled()


def test_reading_numbers_out_of_arrow_imports_no_pandas(tmp_path):
    """It would, where pandas is installed: a fifth of a second at every start."""
    (tmp_path / "pandas.py").write_text("print('pandas was imported')")
    with pa.OSFile(str(tmp_path / "numbers.arrow"), "wb") as sink:
        batch = pa.record_batch({"number": np.arange(3)})
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
    read = "from sft.data.store import _values; import pyarrow as pa; print(_values({})[2])"
    column = f"pa.ipc.open_file(pa.memory_map('{tmp_path}/numbers.arrow')).get_batch(0)['number']"
    environment = clean_environment() | {"PYTHONPATH": f"{tmp_path}:{clean_environment()['PYTHONPATH']}"}

    def out(script):
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True).stdout

    assert out(read.format(column)) == "2\n"
    assert "pandas was imported" in out(f"import pyarrow as pa; {column}.to_numpy()"), "or this test shows nothing"
