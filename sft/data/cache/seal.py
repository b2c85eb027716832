"""Seal a cache directory with the hashes of its files, and tell later whether it is still what was written."""

from __future__ import annotations

from pathlib import Path

from sft.files import sha256_of, sync_directory, write_durably

SEAL = "sha256.txt"
"""Lines as sha256sum writes them: `sha256sum -c sha256.txt` checks a cache by hand."""


def seal(directory: Path, names: tuple[str, ...], *, durable: bool = True) -> None:
    """Write the hashes of these files beside them.

    durable: files, hashes and names are on the disk when this returns
    """
    lines = [_line(name, sha256_of(directory / name, durable=durable)) for name in names]
    if not durable:
        (directory / SEAL).write_text("".join(lines))
        return
    write_durably(directory / SEAL, "".join(lines).encode())
    sync_directory(directory)


def problem_of(directory: Path, names: tuple[str, ...]) -> str | None:
    """Read every byte of a sealed directory and return what is wrong with it; None if it is what was written."""
    lines = {}
    for name in (*names, SEAL):
        path = directory / name
        try:
            if path.exists() and not path.is_file():  # a pipe would hold us
                return f"{name} is no file"
            lines[name] = path.read_bytes() if name == SEAL else _line(name, sha256_of(path)).encode()
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    expected = lines.pop(SEAL)
    if expected == b"".join(lines.values()):
        return None
    wrong = [name for name, line in lines.items() if line not in expected]
    if len(wrong) != 1:  # all, or none: it is the seal that differs
        wrong = [SEAL]
    return f"{wrong[0]} is not what was written (sha256 differs)"


def _line(name: str, digest: str) -> str:
    return f"{digest}  {name}\n"
