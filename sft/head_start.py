"""Rows become tokens in a process of their own, while the trainer is still being imported.

    this process   torch, tokenizers | DTensor, FSDP, models ... | open the samples: cached, or wait for the lock
    its child                        | fill the token cache ........ |

A head start, never a dependency: the run opens the same cache a little later, waits for whoever is building, and
builds what is not there. So whatever goes wrong in the child is left for the run to meet and to say.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from functools import partial
from typing import NoReturn

from sft.config import SftConfig
from sft.distributed import World, log
from sft.pretrained import find_model
from sft.reading import open_tokenizer, tokenise_data

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def tokenise_ahead(config: SftConfig) -> None:
    """Fill the token cache in the background, once per node. Forks: call it before there are threads or a GPU in use.

    Does nothing elsewhere than on Linux, whose system libraries alone survive a fork, and where code of the user's
    would run twice. The child ends when it is done, or with this process, however that goes.
    """
    world = World.from_environment()
    runs_your_code = config.model.external_lib or config.data.custom_cls.path
    if sys.platform != "linux" or world.local_rank != 0 or runs_your_code:
        return
    parent = os.getpid()
    if child := os.fork():
        threading.Thread(target=os.waitpid, args=(child, 0), daemon=True).start()  # its end leaves no zombie
    else:
        _tokenise(config, world, parent)


def _tokenise(config: SftConfig, world: World, parent: int) -> NoReturn:
    """The life of the child."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both; the parent decides
        if os.getppid() == parent:  # else it died before it could be asked to tell us
            log.disabled = True  # the run says everything about its inputs, once
            logging.getLogger("transformers").setLevel(logging.CRITICAL)
            say = partial(print, file=sys.stderr, flush=True) if world.is_main else lambda line: None
            tokenizer, _, _ = open_tokenizer(config, find_model(config.model.partial_pretrain, weights=False))
            tokenise_data(config, tokenizer, say)
    finally:
        os._exit(0)  # nothing of the parent's is to be ended twice; an exception is lost here, as promised above
