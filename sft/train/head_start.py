"""Tokenise rows and read weights from the disk while the trainer is still being imported.

    this process   torch, tokenizers | DTensor, FSDP, models ... | wait for the child | ranks meet | load the model
    its child                        | fill the token cache ................. |
    a thread                         | read the weights into the page cache ............. |

The run waits for the child before it opens the samples. What is wrong with the rows, the child has found for it;
whatever else happens to the child is said, and the run tokenises by itself.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from sft.config import SftConfig
from sft.config.secrets import presentable
from sft.errors import InputError
from sft.files import is_of_the_machine
from sft.model.pretrained import find_model, weight_files
from sft.parallel.host_memory import limit_bytes
from sft.parallel.world import World, log
from sft.train.reading import open_tokenizer, tokenise_data

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SHARE_OF_MEMORY = 0.5  # that weights may fill: what else is cached, and the run itself, must stay
PIECE = 16 * 1024 * 1024  # bytes


class HeadStart:
    """A child that fills the token cache."""

    def __init__(self, child: int, verdict: int):
        self._child, self._verdict = child, os.fdopen(verdict, encoding="utf-8")

    def wait(self) -> None:
        """Return when the child has ended. Raises the InputError that it met."""
        with self._verdict as verdict:
            wrong = verdict.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        if wrong:
            raise InputError(wrong)
        if code:
            log.warning("the process that tokenised ahead ended with %s; this one tokenises what is missing.", code)


def begin(config: SftConfig) -> HeadStart | None:
    """Start tokenising in a child process and reading weights in a thread. Returns a handle to wait for, or None."""
    head_start = tokenise_ahead(config)  # forks, so before there is a thread
    read_weights_ahead(config)
    return head_start


def tokenise_ahead(config: SftConfig) -> HeadStart | None:
    """Fill the token cache in the background, once per node. Forks: call it before there are threads or a GPU in use.

    None elsewhere than on Linux, whose system libraries alone survive a fork; where code of the user's would run twice;
    and where nothing is left to import. The child ends when it is done, or with this process, however that goes.
    """
    world = World.from_environment()
    runs_your_code = config.model.external_lib or config.model.trust_remote_code or config.data.custom_cls.path
    is_first = "sft.fsdp_sft_trainer" not in sys.modules  # of the jobs of a sweep
    if sys.platform != "linux" or world.local_rank != 0 or runs_your_code or not is_first:
        return None
    verdict, answer = os.pipe()
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError:  # no room for another process: the run does without
        os.close(verdict)
        os.close(answer)
        return None
    if not child:
        os.close(verdict)
        _tokenise(config, world, parent, answer)
    os.close(answer)  # held by the child alone, so that its end is seen
    return HeadStart(child, verdict)


def read_weights_ahead(config: SftConfig) -> threading.Thread | None:
    """Bring the weights into the page cache before they are loaded: read through them in a thread, once per node.

    None for a model that is not here yet, for one that memory has no room for, and on several nodes, where each rank
    will read its own slices and no node needs all of them.
    """
    world, source = World.from_environment(), Path(config.model.partial_pretrain)
    if world.local_rank != 0 or world.size > int(os.environ.get("LOCAL_WORLD_SIZE", "1")) or not source.is_dir():
        return None
    with suppress(InputError, OSError):  # a directory that is no model: the run says so
        files = weight_files(source)
        if sum(file.stat().st_size for file in files) < SHARE_OF_MEMORY * limit_bytes():
            thread = threading.Thread(target=read_through, args=(files,), daemon=True)
            thread.start()
            return thread
    return None


def read_through(files: Iterable[Path]) -> int:
    """Read all bytes of the files and keep none. Returns their number, up to the first file that cannot be read."""
    piece, count = bytearray(PIECE), 0
    with suppress(OSError):
        for path in files:
            with path.open("rb", buffering=0) as file:
                while read := file.readinto(piece):
                    count += read
    return count


def _say(line: str) -> None:
    print(presentable(line), file=sys.stderr, flush=True)


def _tokenise(config: SftConfig, world: World, parent: int, answer: int) -> NoReturn:
    """Live the life of the child: fill the token cache, and end."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both; the parent decides
        if os.getppid() == parent:  # else it died before it could be asked to tell us
            log.disabled = True  # the run says everything about its inputs, once
            logging.getLogger("transformers").setLevel(logging.CRITICAL)
            say = _say if world.is_main else lambda line: None
            tokenizer, _, _ = open_tokenizer(
                config, find_model(config.model.partial_pretrain, config.model.revision, weights=False)
            )
            tokenise_data(config, tokenizer, say)
        code = 0
    except InputError as error:
        os.write(answer, str(error).encode())
        code = 0
    except Exception as error:
        if not is_of_the_machine(error):  # the run will meet it, and say it
            _say(traceback.format_exc().rstrip())
    finally:
        os._exit(code)  # nothing of the parent's is to be ended twice
