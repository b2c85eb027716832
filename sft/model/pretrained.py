"""A Hugging Face model directory: where it is, what it says of itself, and which files are its weights."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from sft.config.checks.model import complaint_about_quantisation, quantisation_of
from sft.errors import InputError

SAMPLES_PER_FILE, SAMPLED_BYTES = 64, 64 * 1024
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]
NOT_FROM_HUB = ["consolidated*"]  # the same weights again, in their maker's own format


def find_model(name_or_path: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return the local directory of a model: the path itself, or the hub snapshot, downloaded if it is not here yet.

    revision: branch, tag or commit of the hub's repository; None: its main branch
    weights: whether a snapshot must have them; without, only configuration and tokenizer are downloaded
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        ignored = NOT_FROM_HUB if weights else [*NOT_FROM_HUB, "*.safetensors"]
        return Path(
            snapshot_download(name_or_path, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=ignored)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        at = f" at model.revision={revision}" if revision else ""
        if constants.HF_HUB_OFFLINE:
            raise InputError(
                f"model.partial_pretrain={name_or_path}{at} is not in the hub's cache, and this machine is offline "
                "(HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set): unset it, fetch the model first (hf download "
                f"{name_or_path}), or give a local path."
            ) from error
        if isinstance(error, LocalEntryNotFoundError):  # asked for, and nobody answered
            raise InputError(
                f"model.partial_pretrain={name_or_path}{at} is no local directory and not in the hub's cache, and the "
                f"hub cannot be reached: this machine seems to be offline. Fetch the model where there is a network "
                f"(hf download {name_or_path}), copy it here, and give its local path."
            ) from error
        raise InputError(
            f"model.partial_pretrain={name_or_path}{at} is no local directory, and the hub did not give it "
            f"({type(error).__name__}). Check the name and the connection, log in for gated models, or give a local "
            "path."
        ) from error


def load_config(directory: Path, *, trust_remote_code: bool, dequantise: bool = False) -> PretrainedConfig:
    """Return the architecture of a model directory. Raises InputError for one whose weights are quantised."""
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:  # checked values, code that came with the model: whatever they say is about this file
        told = str(error) if isinstance(error, OSError | ValueError | KeyError) else f"{type(error).__name__}: {error}"
        raise InputError(f"model.partial_pretrain={directory}: no usable config.json there ({told}).") from error
    if complaint := complaint_about_quantisation(quantisation_of(directory), dequantise):
        raise InputError(f"model.partial_pretrain={directory} {complaint}")
    for part in (config, config.get_text_config()):
        vars(part).pop("quantization_config", None)  # its weights are read as if they were not (dequantise.py)
    return config


def largest_of(config: PretrainedConfig, name: str) -> int:
    """Return the largest value that `name` has in any layer; 0 where the configuration does not know it."""
    try:
        values = getattr(config, name, None)
    except RuntimeError:  # transformers does not say one number for layers that differ
        values = [getattr(layer, name, None) for layer in config.per_layer_config]
    return max((value or 0 for value in (values if isinstance(values, list | tuple) else [values])), default=0)


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files that make the model: those of the index, or the only one; others may lie beside
    them. Raises InputError where there is none, or one that this user may not read.
    """
    files = _weight_files(directory)
    if closed := [path.name for path in files if not os.access(path, os.R_OK)]:
        raise InputError(
            f"model.partial_pretrain={directory}: {', '.join(closed)} cannot be read by this user (Permission denied); "
            "check the permissions."
        )
    return files


def _weight_files(directory: Path) -> list[Path]:
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{index} is no index of weights ({error!r}); download it again.") from error
        if absent := sorted(name for name in names if not (directory / name).is_file()):
            raise InputError(
                f"model.partial_pretrain={directory} lacks {', '.join(absent)}, which {index.name} names; "
                "download it again."
            )
        if single.is_file() and single.name not in names:
            raise InputError(
                f"model.partial_pretrain={directory} holds two models: {single.name}, which transformers would open, "
                f"and the files that {index.name} names; move one of them away."
            )
        return sorted(directory / name for name in names)
    files = [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
    if dangling := [path.name for path in files if not path.is_file()]:
        raise InputError(
            f"model.partial_pretrain={directory}: {', '.join(dangling)} links to a file that is not there; copy the "
            "model with its files (cp -L), or download it again."
        )
    if not files:
        others = sorted(path.name for path in directory.glob("*.bin")) or "no weights at all"
        raise InputError(
            f"model.partial_pretrain={directory} holds no *.safetensors but {others}; pickled weights are not read. "
            "Save the model again with save_pretrained()."
        )
    return files


def fingerprint(directory: Path) -> str:
    """Equal for equal models, wherever they lie: sha256 of the configuration and of samples of every weight file.

    Reading terabytes to find that nothing changed would cost minutes at every start; a retrained model differs in
    nearly every byte, and so in the samples.
    """
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in weight_files(directory):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(SAMPLED_BYTES, size // SAMPLES_PER_FILE)):
                file.seek(start)
                digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()[:32]
