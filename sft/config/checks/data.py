"""Find what is wrong with data.mixture: entries of the wrong shape, and entries that do not add up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from sft.config.expectations import source_expectations
from sft.config.problems import shown
from sft.config.schema import DataConfig

ROUNDING = 1e-9


def misshaped(problem: Mapping[str, Any]) -> str | None:
    """Describe a problem that pydantic found inside an entry of data.mixture; None for a problem of the whole list."""
    _, _, *inside = problem["loc"]  # behind data, mixture
    known = source_expectations()
    if not inside:
        return None
    place = f"data.mixture[{inside[0]}]"
    if len(inside) == 1:
        return f"{place}={shown(problem['input'])} must be path, path:N or a section with {', '.join(known)}."
    name = str(inside[1])
    if name not in known:
        similar = get_close_matches(name, known, n=1, cutoff=0.6)
        way_out = f"did you mean {similar[0]}?" if similar else f"a source has {', '.join(known)}."
        return f"{place}.{name} is not a key of a source; {way_out}"
    if problem["type"] == "missing":
        return f"{place}.{name} is missing; set it to {known[name]}."
    return f"{place}.{name}={shown(problem['input'])} must be {known[name]}."


def mixture_problems(data: DataConfig) -> Iterator[str]:
    """List entries that contradict each other or another key. Does not look whether their files exist."""
    if data.val_files is not None and data.val_fraction:
        yield (
            f"data.val_fraction={data.val_fraction:g} would be ignored: data.val_files={shown(data.val_files)} has the "
            "rows for validation; set one of them to 0 or null."
        )
    if data.mixture is None:
        if data.train_files is None:
            yield (
                "data.train_files=null must be a path or a list of paths, for example data.train_files=rows.jsonl; or "
                "name several sources by data.mixture."
            )
        return
    if data.train_files is not None:
        yield (
            f"data.train_files={shown(data.train_files)} would be ignored: the sources of data.mixture take its place; "
            "add the files to them, or set data.train_files=null."
        )
    if data.custom_cls.path is not None:
        yield "data.mixture names files, and data.custom_cls.path a class in their place; set one of them to null."
    if data.train_max_samples > 0:
        yield (
            f"data.train_max_samples={data.train_max_samples} does not say which source of data.mixture it cuts; "
            "set rows of a source."
        )
    for index, source in enumerate(data.mixture):
        if source.fraction is not None and source.weight != 1.0:
            yield (
                f"data.mixture[{index}] has fraction={source.fraction:g} and weight={source.weight:g}, and both say "
                "how often it is seen; keep one of them."
            )
        if source.seed is not None and source.rows is None:
            yield f"data.mixture[{index}].seed={source.seed} would be ignored: without rows none are drawn; set rows."
    fractions = [source.fraction for source in data.mixture if source.fraction is not None]
    total = math.fsum(fractions)
    told = f"the fractions of data.mixture add up to {total:g}"
    if total > 1 + ROUNDING:
        yield f"{told}; they are shares of a whole, so at most 1."
    elif len(fractions) == len(data.mixture) and total < 1 - ROUNDING:
        yield f"{told}, and every source has one; make it 1, or leave one source without a fraction: it gets the rest."
    elif len(fractions) < len(data.mixture) and total > 1 - ROUNDING:
        rest = next(source.path for source in data.mixture if source.fraction is None)
        yield f"{told}, which leaves nothing for {shown(rest)}; lower them, or give it a fraction as well."
