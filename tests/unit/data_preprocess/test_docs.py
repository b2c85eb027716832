"""docs/corpora.md says what the modules do."""

from __future__ import annotations

import importlib
import json
import re

import pytest

from data_preprocess.exchange import to_row
from tests.assets import CORPORA
from tests.launch import REPOSITORY

DOCUMENT = (REPOSITORY / "docs/corpora.md").read_text()


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_example_row_becomes_what_the_page_says(corpus):
    section = re.search(rf"^## {corpus}\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert section, corpus
    raw, row = map(json.loads, re.findall(r"```json\n(.*?)```", section[1], re.DOTALL))
    module = importlib.import_module(f"data_preprocess.{corpus}")
    name = getattr(module, "HUB_ID", corpus)
    assert to_row(module.to_exchange(raw), data_source=name, split="train", index=0) == row


def test_every_option_is_on_the_page(command):
    for corpus in CORPORA:
        options = set(re.findall(r"--\w+", command(corpus, "--help").stdout.partition("options:")[2])) - {"--help"}
        assert len(options) >= 9
        assert not [option for option in sorted(options) if option not in DOCUMENT], corpus
