"""Write files that survive: on the disk when the call returns, and on the disk once."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sft.errors import MishapError

UMASK = os.umask(0)  # asked once, while there is one thread: to ask is to set it
os.umask(UMASK)

NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""Numbers of errors by which a disk says that it does not take more."""

OF_THE_MACHINE = (
    *NO_WRITING,
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EREMOTEIO, errno.ETIMEDOUT),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
)
"""As above, and those of a disk or a mount that fails, and of limits on open files, memory and processes."""

SAID_OF_THE_MACHINE = re.compile(
    "|".join(map(re.escape, [*map(os.strerror, OF_THE_MACHINE), "can't start new thread"]))
)

ASIDE = re.compile(r"\..+\.\d+\.partial")
CHECKPOINT = re.compile(r"global_step_(\d+)")
Unfinished = Literal["partial", "replaced", "deleted"]
"""What stands behind a checkpoint's name, hidden by a dot, while it is written, replaced or deleted."""


@dataclass(frozen=True)
class RunDir:
    """The names of checkpoints in a run directory (trainer.default_local_dir); no other module spells them."""

    path: Path

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint of a step lies, or would lie."""
        return self.path / checkpoint_name(step)

    def checkpoints(self) -> list[Path]:
        """Return the committed checkpoints, oldest first, unverified."""
        return sorted(filter(is_checkpoint, self.path.glob("global_step_*")), key=step_of)

    def unfinished(self, kind: Unfinished) -> list[Path]:
        """Return what an interrupted save or deletion left."""
        return list(self.path.glob(f".global_step_*.{kind}"))


def checkpoint_name(step: int) -> str:
    """Return the name of a step's checkpoint within its run directory."""
    return f"global_step_{step}"


def is_checkpoint(path: Path) -> bool:
    """Return True if a path has the name of a committed checkpoint."""
    return CHECKPOINT.fullmatch(path.name) is not None


def step_of(checkpoint: Path) -> int:
    """Return the N of global_step_N."""
    named = CHECKPOINT.fullmatch(checkpoint.name)
    assert named is not None, f"{checkpoint} is no checkpoint"
    return int(named[1])


def unfinished(checkpoint: Path, kind: Unfinished) -> Path:
    """Return the hidden name that a checkpoint has while it is written, replaced or deleted."""
    return checkpoint.with_name(f".{checkpoint.name}.{kind}")


def finished(unfinished: Path) -> Path:
    """Return the path of the checkpoint whose hidden name this is: .global_step_7.partial -> global_step_7."""
    return unfinished.with_name(unfinished.name[1:].rpartition(".")[0])


def write_durably(path: Path, content: bytes) -> None:
    """Write a file; its content is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Write aside, then rename: a reader, also after a power cut, finds the old file or the new one, never half of one.

    The new one is on the disk when this returns.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write_durably(aside, content)
        aside.replace(path)
        sync_directory(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def remove_left_aside(directory: Path) -> None:
    """Remove what `replace_file` was killed over, here alone. Nobody else may be writing files of this directory."""
    for path in directory.glob(".*.partial"):
        if ASIDE.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def is_of_the_machine(error: Exception) -> bool:
    """Return whether a disk, a mount or a limit is to blame: by its text, which libraries in C++ and Rust pass on."""
    return SAID_OF_THE_MACHINE.search(str(error)) is not None


@contextmanager
def explaining_disk(what: str, way_out: str) -> Iterator[None]:
    """Make a MishapError, one sentence, of a disk that is full, read-only or limited while `what` is written."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_WRITING:
            raise
        raise MishapError(f"{what} cannot be written ({os.strerror(error.errno)}). {way_out}") from error


def append_whole(file: io.FileIO, content: bytes) -> None:
    """Write at the position of an unbuffered file; where the disk takes only a part of it, the file ends before it.

    Raises FileNotFoundError where the file was deleted meanwhile: what is written into it then, nobody ever sees.
    """
    if os.fstat(file.fileno()).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, "deleted while it was written", file.name)
    start, rest = file.tell(), memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with suppress(OSError):
            file.truncate(start)
            file.seek(start)
        raise


IN_WORDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
"""What stands at a path, by its mode; anything else is a device."""


def in_the_way(path: Path, *, is_directory: bool = False, is_kept: bool = False) -> str | None:
    """Return why no file (is_directory: no directory) can be written at a path, as a clause; None if it can.

    is_kept: what is there is written into, wherever a link leads; else something new takes its place.
    """
    try:
        there, around = (path.stat() if is_kept else path.lstat()), path.parent.stat()
    except FileNotFoundError:
        return f"is a link to {path.readlink()}, which does not exist" if path.is_symlink() else None
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    kind = stat.S_IFMT(there.st_mode)
    if kind not in ({stat.S_IFDIR} if is_directory else {stat.S_IFREG, stat.S_IFLNK}):
        return f"is {IN_WORDS.get(kind, 'a device')}"
    if around.st_mode & stat.S_ISVTX and os.geteuid() not in (0, around.st_uid, there.st_uid) and not is_kept:
        return "belongs to another user, and in this directory nobody else can replace it (its sticky bit)"
    return "cannot be written by this user" if is_kept and not os.access(path, os.W_OK) else None


def complaint_about_output(path: Path) -> str | None:
    """Return why a command cannot write the file that it was asked for at its end, as a clause; None if it can.

    A device is refused as well: a new file takes the place of what is there, and be it /dev/null.
    """
    directory = path.absolute().parent
    if path.is_dir() or not directory.is_dir():
        return "must be a file in a directory that exists"
    if not os.access(directory, os.W_OK):
        return f"cannot be made: {directory} cannot be written by this user"
    return in_the_way(path, is_kept=True)


def sha256_of(path: Path, *, durable: bool = False) -> str:
    """Return the sha256 of a file, in hex. durable: what was hashed is on the disk when this returns."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if durable:
            os.fsync(file.fileno())
    return digest


def sync_tree(directory: Path) -> None:
    """Bring every file and every name below `directory` to the disk before this returns."""
    for path in [*directory.rglob("*"), directory]:
        _fsync(path)


def sync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk before this returns; not what its files hold."""
    _fsync(directory)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_weights(source: str, target: str) -> None:
    """Copy a file (for shutil.copytree); as a hard link if it holds weights, which are replaced and never edited."""
    if source.endswith(".safetensors"):
        try:
            return os.link(source, target)
        except OSError:
            pass  # a file system without hard links
    shutil.copyfile(source, target)
    return None


def let_others_read(path: Path) -> None:
    """Give a file the rights that the umask leaves: safetensors makes files that only their owner may read."""
    path.chmod(0o666 & ~UMASK)
