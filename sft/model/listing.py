"""Spare every start the second reading of transformers' 3,000 files of models.

`import transformers` reads them all, to know which names are in which; the first use of a model does so again, because
transformers keeps what it read in 128 of its 550 folders. That is 0.3 s of CPU time, and more where Python's packages
lie on a file system of the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import import_utils

MODELS = Path(import_utils.__file__).parent.parent / "models"

Listing = dict[Any, dict[str, set[str]]]
"""{what must be installed: {module: names in it}}"""


def list_models_once() -> None:
    """Let `transformers.models` take the listing that `transformers` has made. Call it before a model is imported."""
    define, package = import_utils.define_import_structure, MODELS / "__init__.py"
    listing = of_models(define(MODELS, prefix="models"))  # the call of `transformers`, whose result is kept

    def define_once(module_path: str, prefix: str | None = None) -> Listing:
        return listing if prefix is None and Path(module_path) == package else define(module_path, prefix)

    import_utils.define_import_structure = define_once


def of_models(listing: Listing) -> Listing:
    """Return the part of transformers' listing that is about models, under the names of `transformers.models`."""
    return {
        needs: {name.removeprefix("models."): inside for name, inside in modules.items() if name.startswith("models.")}
        for needs, modules in listing.items()
    }
