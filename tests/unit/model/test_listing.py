"""transformers' files of models are read once per process."""

import subprocess
import sys

from transformers.utils import import_utils

from sft.model.listing import MODELS, of_models

COUNT = """
import collections, sys
opened = collections.Counter()
sys.addaudithook(lambda event, arguments: event == "open" and opened.update([str(arguments[0])]))
import sft.model.pretrained
print(sum(count for path, count in opened.items() if path.endswith("modeling_bert.py")))
"""


def test_a_model_that_nobody_uses_is_read_once() -> None:
    told = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True).stdout
    assert int(told) == 1


def test_it_is_what_transformers_lists_itself() -> None:
    listed = import_utils.create_import_structure_from_path.__wrapped__(str(MODELS))
    of_transformers = import_utils.define_import_structure(MODELS, prefix="models")
    assert of_models(of_transformers) == import_utils.spread_import_structure(listed)
