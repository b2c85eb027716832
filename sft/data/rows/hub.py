"""Data sets of the hub: `org/name`, `org/name:split` or `org/name/folder:split`, as local files."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sft.config.checks.data_files import DATASET_ID
from sft.data.rows.splits import Config, by_split, canonical, configs_in, files_of_config, one_of
from sft.errors import InputError

_IS_SHARD = re.compile(r"-\d+-of-\d+\.")


@dataclass(frozen=True)
class HubDataset:
    """What a spec names: the repository, a folder of it ("" for all), and a split (None: train, or all there is)."""

    id: str
    folder: str
    split: str | None


def dataset_named(spec: str) -> HubDataset | None:
    """Return the hub data set that a spec names; None where it cannot be one. Looks at the text only."""
    match = DATASET_ID.fullmatch(spec)
    return match and HubDataset(match["id"], match["folder"].strip("/"), match["split"])


def files_of(dataset: HubDataset, data_in: Callable[..., list[Path]], say: Callable[[str], None]) -> list[Path]:
    """Return the files of its split, and no others, downloaded if they are not here yet.

    data_in: picks those of the repository's paths that are data; every=True: for a README to choose from
    Raises InputError where the hub does not give them, and where they are of several configurations.
    """
    snapshot, paths = _listing(dataset)
    configs = configs_in(_readme(dataset, snapshot)) if Path("README.md") in paths else []
    files = data_in(paths, every=bool(configs))
    split, chosen = _choose(dataset, files, configs)
    if snapshot is None:
        snapshot = _download(dataset, chosen)
    say(f"{dataset.id}: {split or 'all files'}, {len(chosen)} of {len(files)} files ({_few(chosen)})")
    return [snapshot / path for path in chosen]


def _choose(dataset: HubDataset, files: list[Path], configs: Sequence[Config]) -> tuple[str | None, list[Path]]:
    """Return the split that is meant (None: all there is), and those of a repository's files that the spec names."""
    name = f"{dataset.id}/{dataset.folder}" if dataset.folder else dataset.id
    if configs and (not dataset.folder or any(config.name == dataset.folder for config in configs)):
        return dataset.split or "train", files_of_config(configs, files, dataset.id, dataset.folder, dataset.split)
    files = [path for path in files if _is_in(path, dataset.folder)]
    splits = by_split(files)
    if dataset.split is not None:
        split: str | None = canonical(dataset.split)
        # A name of the repository's own stands anywhere in the path.
        chosen = splits.get(split) or [path for path in files if _is_of(path, dataset.split)]
        split = dataset.split
    else:
        named = {split: paths for split, paths in splits.items() if split is not None}
        split = one_of(named, name, None) if named else None
        training = sorted(other for other in named if other.startswith("train")) if split == "train" else []
        are_shards = all(_IS_SHARD.search(path.name) for other in training for path in named[other])
        if len(training) > 1 and not are_shards:
            raise InputError(
                f"{name}: several splits begin with train ({', '.join(training)}); name one of them: {name}:train."
            )
        chosen = splits.get(split, [])
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
    return split, chosen


def _readme(dataset: HubDataset, snapshot: Path | None) -> str:
    """Return the README of the data set; "" where the hub does not give it."""
    from huggingface_hub import hf_hub_download

    try:
        path = snapshot / "README.md" if snapshot else hf_hub_download(dataset.id, "README.md", repo_type="dataset")
        return Path(path).read_text(errors="replace")
    except Exception:  # of the client's HTTP library, as below; the names of the files speak as well
        return ""


def _listing(dataset: HubDataset) -> tuple[Path | None, list[Path]]:
    """Return (None, all paths of the repository), or without the hub (its snapshot in the cache, the paths in it).

    Raises InputError where neither knows it.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        return None, [Path(name) for name in HfApi().list_repo_files(dataset.id, repo_type="dataset")]
    except Exception as error:  # a network error is of the client's HTTP library, and that changed twice
        try:
            snapshot = Path(snapshot_download(dataset.id, repo_type="dataset", local_files_only=True))
        except (ValueError, OSError):  # no name that a repository can have; not in the cache
            raise _not_given(dataset, error) from error
    return snapshot, [path.relative_to(snapshot) for path in snapshot.rglob("*") if not path.is_dir()]


def _download(dataset: HubDataset, chosen: list[Path]) -> Path:
    """Return the directory that holds the chosen files of the repository."""
    from huggingface_hub import snapshot_download

    names = [glob.escape(path.as_posix()) for path in chosen]
    try:
        return Path(snapshot_download(dataset.id, repo_type="dataset", allow_patterns=names))
    except Exception as error:  # as above
        raise _not_given(dataset, error) from error


def _not_given(dataset: HubDataset, error: Exception) -> InputError:
    return InputError(
        f"{dataset.id} is no local path (looked for {Path(dataset.id).absolute()}), and the hub did not give a "
        f"data set of that name ({type(error).__name__}). Check the name and the network, log in for gated data "
        "(HF_TOKEN), or give a local path."
    )


def _is_in(path: Path, folder: str) -> bool:
    return not folder or path.as_posix().startswith(f"{folder}/")


def _is_of(path: Path, split: str) -> bool:
    """Whether a file is of a split: `train-00000-of-00002.parquet`, `data/train.jsonl`, `train/0000.parquet`."""
    return re.search(rf"(^|[/_.-]){re.escape(split)}([/_.-]|$)", path.as_posix()) is not None


def _few(paths: list[Path]) -> str:
    names = ", ".join(path.as_posix() for path in paths[:4])
    return (names or "nothing") + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
