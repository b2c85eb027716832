"""Ranks of several nodes, each in a network of its own, forked by one process and without torchrun, as under srun.

    python -m tests.fault.nodes ENDED RANKS

RANKS: a JSON list of {network, environment, module, arguments, out}. ENDED gets a line for each rank that has ended:
its place in the list, its exit code, and when (time.monotonic). Each leads a process group; its id stands beside `out`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from tests.warm import run_as_main

CLONE_NEWNET = 0x40000000  # linux/sched.h


def become(network: str, environment: dict[str, str], module: str, arguments: list[str], out: str) -> NoReturn:
    """Turn this process into a rank that lives in a network namespace."""
    code = 1
    try:
        os.setpgid(0, 0)
        Path(out).with_suffix(".pid").write_text(str(os.getpid()))
        with Path("/run/netns", network).open("rb") as space:
            if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"the network {network} cannot be entered")
        os.environ.update(environment)
        with Path(out).open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        run_as_main(module, arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main(ended: str, ranks: list[dict[str, Any]]) -> None:
    """Fork the ranks, and note the end of each."""
    places = {}
    for place, rank in enumerate(ranks):
        pid = os.fork()
        if not pid:
            become(**rank)
        places[pid] = place
    with Path(ended).open("w", buffering=1) as file:
        while places:
            pid, status = os.wait()
            file.write(f"{places.pop(pid)} {os.waitstatus_to_exitcode(status)} {time.monotonic()}\n")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
