"""Call one function on many inputs in several processes; the results come in the order of the inputs, as from `map`.

    parent --input--> child, idle until then     one pipe each; the next input goes to whoever is done first
    parent <--result-- child

A child that waits for its next input sees the end of its pipe when the parent is gone, however it went, and ends.
This is why it is not concurrent.futures.ProcessPoolExecutor, whose children wait for ever once the parent is killed.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from sft.errors import InputError

Input = TypeVar("Input")
Result = TypeVar("Result")

IN_FLIGHT = 2  # per process: inputs that were read and whose results are not out yet
YOUNG_OBJECTS = 50_000  # between collections in a child, whose garbage is seldom cyclic: 700 cost 3 % of its time


def processes_for(num_workers: int | None, num_inputs: int) -> int:
    """Return how many processes to use for so many inputs, at most num_workers; None: every core we may use."""
    if num_workers is None:
        # Elsewhere than on Linux, system libraries do not survive a fork.
        num_workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    return max(1, min(num_workers, num_inputs))


def map_in_order(
    function: Callable[[Input], Result], inputs: Iterable[Input], num_processes: int
) -> Generator[Result, None, None]:
    """Yield `function` of every input, in their order. Close it, or exhaust it, and no process is left.

    Forked: nothing is imported again, and `function` may be any closure; inputs and results are pickled. With one
    process all happens in this one. Raises InputError if a process is lost, and the InputError that `function` raises.
    """
    if num_processes <= 1:
        yield from map(function, inputs)
        return
    children: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(num_processes):
            _start(function, children)
        yield from _results(children, inputs)
    finally:
        for child in children.values():
            child.kill()
        for connection, child in children.items():
            child.join()
            connection.close()


def _start(function: Callable[[Any], Any], children: dict[Connection, BaseProcess]) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(function, theirs, [*children, ours]), daemon=True)
    child.start()
    theirs.close()  # held by the child alone, so that its end is seen
    children[ours] = child


def _results(children: dict[Connection, BaseProcess], inputs: Iterable[Any]) -> Generator[Any, None, None]:
    numbered = enumerate(inputs)
    idle, at_work, done = list(children), dict[Connection, int](), dict[int, Any]()
    turn = 0
    while True:
        while idle and len(at_work) + len(done) < IN_FLIGHT * len(children) and (item := next(numbered, None)):
            connection = idle.pop()
            at_work[connection] = item[0]
            _exchange(children[connection], connection.send, item[1])
        if turn in done:  # only now, when no child waits for its next input
            yield done.pop(turn)
            turn += 1
        elif at_work:
            for connection in wait(list(at_work)):
                assert isinstance(connection, Connection)
                result = _exchange(children[connection], connection.recv)
                if isinstance(result, InputError):
                    raise result
                done[at_work.pop(connection)] = result
                idle.append(connection)
        else:
            return


def _exchange(child: BaseProcess, talk: Callable[..., Any], *message: Any) -> Any:
    try:
        return talk(*message)
    except (EOFError, ConnectionError) as error:
        child.join()
        code = child.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}, see above"
        raise InputError(
            f"one of data.num_workers processes {how}; a smaller number needs less memory, and with "
            "data.num_workers=1 the error shows here."
        ) from error


def _serve(function: Callable[[Any], Any], connection: Connection, inherited: list[Connection]) -> None:
    """Answer one input after the other until the parent is gone: all that a child does."""
    for other in inherited:
        other.close()  # open here, they would keep siblings alive after the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork, and every core has its process
    gc.freeze()  # what the parent made stays shared with it, untouched by collections here
    gc.set_threshold(YOUNG_OBJECTS)
    try:
        while True:
            given = connection.recv()
            try:
                connection.send(function(given))
            except InputError as error:  # for the parent to raise
                connection.send(error)
    except (EOFError, ConnectionError):
        return
