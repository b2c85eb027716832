"""The table of docs/models.md: written by a sweep, and read by the next one to see what is no longer right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

COLUMNS = ("full", "packed", "sp", "LoRA")
NOT_TRIED = "-"
NAMED_MODES = rf"(?:{'|'.join(COLUMNS)})(?:, (?:{'|'.join(COLUMNS)}))*: "
"""How a note begins that is about some modes."""

HEAD = """\
# Which models train

`python scripts/sweep_families.py` wrote this page on {day} with {versions}, on {numbers}.

A tiny random model of every family of causal language models in transformers, and of many that also see, is trained on
text in fp32, for three steps: on one CPU rank, and on two with sp. A mode is **right** if the losses and gradient norms
of all steps equal those of a plain PyTorch loop over single samples, and the model in the run directory opens with
`from_pretrained`, has the names, shapes and dtypes of its source, predicts what the plain loop's model does, and
generates. **refused** is one sentence before the first step; it stands in the notes. **-** was not tried.

- full: all weights, padded rows (`use_remove_padding=false`)
- packed: samples end to end in one row (`use_remove_padding=true`)
- sp: packed, and two ranks share every row (`ulysses_sequence_parallel_size=2`)
- LoRA: `model.lora_rank=4` on all linear modules; the merged model predicts what peft's base and adapter do

| family | full | packed | sp | LoRA | notes |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """What a sweep found of one family."""

    kind: str
    verdicts: Mapping[str, str]  # by mode; none where the family could not be built
    notes: str


def read_table(path: Path) -> dict[str, Row]:
    """Return the rows of an earlier sweep, by family; none if there was none."""
    rows = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        cells = [cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 2 + len(COLUMNS) and cells[0] != "family":
            told = {mode: cell for mode, cell in zip(COLUMNS, cells[1:-1], strict=True) if cell != NOT_TRIED}
            rows[cells[0]] = Row(cells[0], told, cells[-1].replace("\0", "|"))
    return rows


def joined(earlier: Row | None, row: Row) -> Row:
    """Return what a sweep of some modes found, and what an earlier one found of the others."""
    if earlier is None or not earlier.verdicts or not row.verdicts:
        return row
    others = {mode: told for mode, told in earlier.verdicts.items() if mode not in row.verdicts}
    kept = []
    for note in re.split(rf"; (?={NAMED_MODES})", earlier.notes):
        named, reason = re.fullmatch(rf"(?:({NAMED_MODES}))?(.*)", note, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
        modes = [mode for mode in (named or "").removesuffix(": ").split(", ") if mode in others]
        if modes or (reason and not named and reason not in row.notes):
            kept.append(f"{', '.join(modes)}{': ' if modes else ''}{reason}")
    found = others | dict(row.verdicts)
    notes = "; ".join(note for note in (*kept, row.notes) if note)
    return Row(row.kind, {mode: found[mode] for mode in COLUMNS if mode in found}, notes)


def write_table(path: Path, rows: Mapping[str, Row]) -> None:
    """Write the page anew."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    right = sum(bool(row.verdicts) and set(row.verdicts.values()) == {"right"} for row in rows.values())
    built = sum(bool(row.verdicts) for row in rows.values())
    numbers = f"{len(rows)} families, of which {built} could be built small and {right} are right in all tried modes"
    head = HEAD.format(day=datetime.now(UTC).date(), versions=versions, numbers=numbers)
    path.write_text(head + "".join(_line(rows[kind]) for kind in sorted(rows)))


def _line(row: Row) -> str:
    cells = [row.kind, *(row.verdicts.get(mode, NOT_TRIED) for mode in COLUMNS), row.notes.replace("|", "\\|")]
    return f"| {' | '.join(cells)} |\n"
