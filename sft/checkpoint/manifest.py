"""Read and write manifest.json: what a checkpoint is, and what every one of its files must be."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from sft.errors import InputError
from sft.files import sha256_of

MANIFEST, MANIFEST_SHA256 = "manifest.json", "manifest.sha256"
STATE_DIR = "state"
MODEL_DIR = "huggingface"
SAFE_NAME = re.compile(r"[A-Za-z0-9._-]+")


class CheckpointError(InputError):
    """A checkpoint cannot be used; the message says which, why, and the way out."""


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint. Raises CheckpointError if it is missing or not what was written."""
    try:
        content = (checkpoint / MANIFEST).read_bytes()
        digest = (checkpoint / MANIFEST_SHA256).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is missing.") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read ({error.strerror}).") from error
    if digest != digest_line(content):
        raise CheckpointError(f"{checkpoint / MANIFEST} is not what was written (sha256 differs).")
    try:
        manifest = json.loads(content)
        _ = manifest["step"], manifest["files"].items()
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # whole, and yet none of ours
        raise CheckpointError(f"{checkpoint / MANIFEST} is no manifest ({type(error).__name__}: {error}).") from error
    return manifest


def digest_line(content: bytes) -> bytes:
    """Return what manifest.sha256 must hold; `sha256sum -c` understands it."""
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def has_state(manifest: dict[str, Any]) -> bool:
    return any(name.startswith(f"{STATE_DIR}/") for name in manifest["files"])


def has_model(manifest: dict[str, Any]) -> bool:
    return any(name.startswith(f"{MODEL_DIR}/") for name in manifest["files"])


def describe_file(path: Path, *, durable: bool = False) -> dict[str, Any]:
    """Return size and sha256 of a file. durable: the file is on the disk when this returns."""
    digest = sha256_of(path, durable=durable)
    return {"size": path.stat().st_size, "sha256": digest}


def problem_of_file(checkpoint: Path, name: str, expected: dict[str, Any]) -> str | None:
    """Return what is wrong with one file of the manifest; None if it is what was written."""
    if not all(SAFE_NAME.fullmatch(part) and part != ".." for part in name.split("/")):
        return f"{name!r} is no name that a checkpoint has"
    path = checkpoint / name
    if path.resolve() != checkpoint.resolve() / name:
        return f"{name} is a symbolic link to {path.resolve()}"
    if not path.is_file():
        return f"{name} is missing"
    if (size := path.stat().st_size) != expected["size"]:
        return f"{name} has {size} bytes, {expected['size']} were written"
    if describe_file(path) != expected:
        return f"{name} is not what was written (sha256 differs)"
    return None
