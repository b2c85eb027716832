"""Imports without garbage collection, which goes on afterwards, also where an import fails; and none for nothing."""

import gc
import subprocess
import sys

import pytest

from sft.config.cli import without_collections
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


def test_numbers_into_arrow_and_out_of_it_import_no_pandas(tmp_path):
    """They would, where pandas is installed: a fifth of a second in every process."""
    (tmp_path / "pandas.py").write_text("raise RuntimeError('pandas was imported')")
    ours = """
import numpy as np
from sft.data.cache.arrow import lists_to_arrow, lists_to_numpy, to_arrow, to_numpy
assert to_numpy(to_arrow(np.arange(6)[::2])).tolist() == [0, 2, 4]
offsets, values = lists_to_numpy(lists_to_arrow([np.array([1, 2]), np.array([], int), np.array([3])], np.int32))
assert offsets.tolist() == [0, 2, 2, 3] and values.tolist() == [1, 2, 3] and values.dtype == np.int32
offsets, values = lists_to_numpy(lists_to_arrow([], np.float32))
assert offsets.tolist() == [0] and values.tolist() == [] and values.dtype == np.float32
"""

    def errors(script):
        environment = clean_environment() | {"PYTHONPATH": f"{tmp_path}:{clean_environment()['PYTHONPATH']}"}
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True).stderr

    assert errors(ours) == ""
    assert "pandas was imported" in errors("import pyarrow as pa; pa.array([1])"), "or this test shows nothing"


def test_a_head_start_is_early():
    """Before it, nothing is imported that only training needs: that is what it goes on beside of."""
    heavy = ["torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo", "transformers.modeling_utils"]
    # With transformers 5.17, a tokenizer alone brings most of it.
    tokenizer = "import sys; from transformers import AutoTokenizer; AutoTokenizer; known = set(sys.modules)"
    new = f"[name for name in {heavy} if name in sys.modules.keys() - known]"
    script = f"{tokenizer}; import sft.train.head_start; print({new})"
    done = subprocess.run([sys.executable, "-c", script], env=clean_environment(), capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
