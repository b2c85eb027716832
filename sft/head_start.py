"""Rows become tokens in a process of their own, while the trainer is still being imported.

    this process   torch, tokenizers | DTensor, FSDP, models ... | open the samples: cached, or wait for the lock
    its child                        | fill the token cache ........ |

The run waits for the child before it opens the samples. What is wrong with the rows, the child has found for it;
whatever else happens to the child is said, and the run tokenises by itself.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import traceback
from functools import partial
from typing import NoReturn

from sft.config import SftConfig
from sft.distributed import World, log
from sft.errors import InputError
from sft.pretrained import find_model
from sft.reading import open_tokenizer, tokenise_data

PR_SET_PDEATHSIG = 1  # linux/prctl.h


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


def _tokenise(config: SftConfig, world: World, parent: int, answer: int) -> NoReturn:
    """The life of the child."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both; the parent decides
        if os.getppid() == parent:  # else it died before it could be asked to tell us
            log.disabled = True  # the run says everything about its inputs, once
            logging.getLogger("transformers").setLevel(logging.CRITICAL)
            say = partial(print, file=sys.stderr, flush=True) if world.is_main else lambda line: None
            tokenizer, _, _ = open_tokenizer(config, find_model(config.model.partial_pretrain, weights=False))
            tokenise_data(config, tokenizer, say)
        code = 0
    except InputError as error:
        os.write(answer, str(error).encode())
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)  # nothing of the parent's is to be ended twice
