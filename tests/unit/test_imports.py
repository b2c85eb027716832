"""Imports without garbage collection, which goes on afterwards, also where an import fails."""

import gc

import pytest

from sft.imports import without_collections


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
