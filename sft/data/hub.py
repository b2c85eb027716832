"""Data sets of the hub: `org/name`, `org/name:split` or `org/name/folder:split`, as local files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sft.config.checks import DATASET_ID
from sft.errors import InputError

SPLITS = ("train", "test", "validation", "valid", "val", "dev")


@dataclass(frozen=True)
class HubDataset:
    """What a spec names: the repository, a folder of it ("" for all), and a split (None: train, or all there is)."""

    id: str
    folder: str
    split: str | None


def dataset_named(spec: str) -> HubDataset | None:
    """The hub data set that a spec names; None where it cannot be one. Looks at the text only."""
    match = DATASET_ID.fullmatch(spec)
    return match and HubDataset(match["id"], match["folder"].strip("/"), match["split"])


def files_of(
    dataset: HubDataset, data_files_in: Callable[[Path], list[Path]], say: Callable[[str], None]
) -> list[Path]:
    """The files of its split, downloaded if they are not here yet.

    Raises InputError where the hub does not give them, and where they are of several configurations.
    """
    snapshot = _snapshot(dataset)
    files = [path.relative_to(snapshot) for path in data_files_in(snapshot)]
    files = [path for path in files if not dataset.folder or path.as_posix().startswith(f"{dataset.folder}/")]
    split = dataset.split or ("train" if any(_is_of(path, "train") for path in files) else None)
    chosen = [path for path in files if _is_of(path, split)] if split else files
    if split is None and (named := [name for name in SPLITS if any(_is_of(path, name) for path in files)]):
        raise InputError(f"{dataset.id} has no split train; name one of {named}: {dataset.id}:{named[0]}.")
    if not chosen:
        raise InputError(
            f"{dataset.id}: no parquet or jsonl file{f' of the split {split}' if split else ''}"
            f"{f' in {dataset.folder}' if dataset.folder else ''}; found {_few(files)}."
        )
    folders = sorted({"/".join(part for part in path.parts[:-1] if part != split) for path in chosen})
    if len(folders) > 1:
        raise InputError(
            f"{dataset.id} has several configurations ({', '.join(map(repr, folders[:8]))}); choose one: "
            f"{dataset.id}/{folders[-1]}{f':{split}' if split else ''}."
        )
    say(f"{dataset.id}: {split or 'all files'}, {len(chosen)} of {len(files)} files ({_few(chosen)})")
    return [snapshot / path for path in chosen]


def _snapshot(dataset: HubDataset) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    of_split = f"*{dataset.split}*" if dataset.split else "*"
    try:
        return Path(
            snapshot_download(
                dataset.id, repo_type="dataset", allow_patterns=[f"{of_split}.parquet", f"{of_split}.jsonl"]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{dataset.id} is no local path (looked for {Path(dataset.id).absolute()}), and the hub did not give a "
            f"data set of that name ({type(error).__name__}). Check the name and the network, log in for gated data "
            "(HF_TOKEN), or give a local path."
        ) from error


def _is_of(path: Path, split: str) -> bool:
    """Whether a file is of a split: `train-00000-of-00002.parquet`, `data/train.jsonl`, `train/0000.parquet`."""
    return re.search(rf"(^|[/_.-]){re.escape(split)}([/_.-]|$)", path.as_posix()) is not None


def _few(paths: list[Path]) -> str:
    names = ", ".join(path.as_posix() for path in paths[:4])
    return (names or "nothing") + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
