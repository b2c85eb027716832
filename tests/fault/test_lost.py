"""A rank, a node or the cable between two nodes is lost at any moment: whoever is left ends in time and says so."""

import json
import os
import random
import signal
import time
from contextlib import ExitStack, suppress

import pytest

from sft.checkpoint.find import problems_of
from tests.fault.faults import FAULTS, PATIENCE_S, last_step, saved_steps
from tests.fault.moments import state_of
from tests.launch import clean_environment, warm_process
from tests.networks import ADDRESSES, ip, two_networks

TIMEOUT_S = 5
BOUND_S = TIMEOUT_S + 10.0
"""As docs/resume.md promises."""

KILLED, STOPPED = "one rank killed (SIGKILL)", "one rank stopped for ever (SIGSTOP)"
CUT, LOST, NEVER_MET = "the cable of a node cut", "the node of rank 0 lost", "nodes that never meet"
KINDS = (KILLED, STOPPED, CUT, LOST, NEVER_MET)
SHORT = ["trainer.total_training_steps=12", "trainer.save_freq=4", "trainer.save_hf_freq=6", "trainer.test_freq=6"]


@pytest.mark.timeout(0 if FAULTS > 3 else 300)
def test_whoever_is_left_ends_in_time_and_says_who_is_lost(command, reference, tmp_path, rows):
    """One pair of nodes for each kind at a time: they mostly wait."""
    dice = random.Random(14)
    for number in range(FAULTS):
        with ExitStack() as stack:
            pairs = []
            if not number:  # beside the first ones, a pair that nothing happens to: how many calls there are
                pairs.append(whole := Pair(stack, command, tmp_path / "whole", None, [0, 0]))
            for kind in KINDS:
                lost = 0 if kind == LOST else dice.randrange(2)
                calls = [0, 0]
                if number % 2 and kind != NEVER_MET:  # every other time it stands before a call that changes files
                    calls[lost] = dice.randrange(1, whole.calls(lost) + 1)
                pairs.append(Pair(stack, command, tmp_path / f"{KINDS.index(kind)}_{number}", kind, calls, lost, dice))
            together(pairs, tmp_path)
            assert {code for code, _ in whole.ends.values()} == {0}, whole.text
            for pair in pairs[-len(KINDS) :]:
                row = rows[f"{pair.kind}, timeout_s={TIMEOUT_S}"]
                row.injected += 1
                pair.is_sound()
                # Before it was hurt, where rank 0 had only its last files to write.
                ended = max(pair.ends[rank][1] for rank in pair.left)
                row.ended.append(max(0.0, ended - pair.hurt_at))
                assert row.ended[-1] < BOUND_S, pair.text
                row.survived += 1


def together(pairs, home):
    """Start the ranks of all pairs, and see them through to their ends."""
    log, ended = home / "nodes.log", home / "ended"
    for path in (log, ended):
        path.write_bytes(b"")
    warm_process().order(
        module="tests.fault.nodes",
        arguments=[str(ended), json.dumps([rank for pair in pairs for rank in pair.ranks])],
        ranks=0,
        cwd=str(home),
        environment=clean_environment(),
        stdout=str(log),
        stderr=str(log),
    )
    try:
        watch(pairs, ended)
    finally:  # the ranks that were stopped for ever, and all of them if the test fails
        for pair in pairs:
            pair.clear()
        code = warm_process().exit_code()
    assert code == 0, log.read_text()


def watch(pairs, ended):
    """Hurt each pair at its moment, and wait until whoever is left of them has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while not all(pair.is_over for pair in pairs):
        time.sleep(0.01)
        for line in ended.read_text().splitlines():
            place, code, at = line.split()
            pairs[int(place) // 2].ends[int(place) % 2] = int(code), float(at)
        for pair in pairs:
            pair.look()
        assert time.monotonic() < deadline, "\n".join(pair.text for pair in pairs if not pair.is_over)


class Pair:
    """Two nodes of one rank each, with a run of their own; one of them, `lost`, is to be hurt.

    calls: the rank stops itself before that call below the run directory; 0: it does not
    """

    def __init__(self, stack, command, home, kind, calls, lost=0, dice=None):
        nodes = stack.enter_context(two_networks())
        if not nodes[0][0]:
            pytest.skip("no network namespaces may be made here")
        home.mkdir()
        self.kind, self.hurt_at, self.ends, self._calls, self._lost = kind, None, {}, calls, lost
        self.left = [1 - lost] if kind in (KILLED, STOPPED, LOST) else [0, 1]
        self._home, self._run_dir, self._dice = home, home / "run", dice
        self._steps = dice.randrange(1, 30) if dice else 0
        self._nodes = [(enter[-1], cable) for enter, _, cable in nodes]
        self._outs = [home / f"{rank}.out" for rank in range(2)]
        overrides = [*command, f"trainer.timeout_s={TIMEOUT_S}", f"trainer.default_local_dir={self._run_dir}"]
        overrides += SHORT if any(calls) or not kind else []
        self.ranks = [
            {
                "network": self._nodes[rank][0],
                "environment": {
                    **{"RANK": str(rank), "GROUP_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"},
                    **{"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": self._nodes[rank][1]},
                    **{"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500", "RES_OPTIONS": "timeout:1 attempts:1"},
                },
                "module": "tests.fault.stops_itself",
                "arguments": [str(self._run_dir), str(calls[rank]), str(home / f"{rank}.calls"), *overrides],
                "out": str(out),
            }
            for rank, out in enumerate(self._outs)
        ]

    @property
    def text(self):
        outs = [f"rank {rank}: {out.read_text(errors='replace')}" for rank, out in enumerate(self._outs)]
        return "\n".join([f"{self.kind}, rank {self._lost}, call {self._calls}, {self._home}, {self.ends}", *outs])

    @property
    def is_over(self):
        return (self.hurt_at or not self.kind) and set(self.ends) >= set(self.left)

    def calls(self, rank):
        """Return how many calls changed files below the run directory."""
        return len((self._home / f"{rank}.calls").read_text().splitlines())

    def look(self):
        """Hurt it when its moment has come."""
        if self.kind and not self.hurt_at and self._is_moment():
            self._hurt()
            self.hurt_at = time.monotonic()
        if self.kind == NEVER_MET and self.hurt_at and "val.jsonl:" not in self._outs[0].read_text():
            self.hurt_at = time.monotonic()  # rank 0 still reads its data; then it waits for the other
        assert self.hurt_at or not self.kind or self._lost not in self.ends, f"it ended unhurt: {self.text}"

    def _pid(self, rank):
        """Return the process, which leads a group of its own; 0 if it has not begun."""
        path = self._home / f"{rank}.pid"
        return int(path.read_text() or 0) if path.exists() else 0

    def _is_moment(self):
        if self.kind == NEVER_MET:  # it has begun
            return self._outs[0].exists() and self._outs[0].stat().st_size
        if self._calls[self._lost]:
            return state_of(self._pid(self._lost)) == "T"
        return last_step(self._run_dir) >= self._steps

    def _hurt(self):
        if self.kind in (CUT, LOST, NEVER_MET):
            space, cable = self._nodes[self._lost]
            ways = [("link", "set", cable, "down"), ("addr", "flush", "dev", cable)]
            assert ip("-n", space, *(ways[0] if self.kind == LOST else self._dice.choice(ways)))
        after = {KILLED: signal.SIGKILL, LOST: signal.SIGKILL, STOPPED: signal.SIGSTOP}.get(self.kind, signal.SIGCONT)
        os.killpg(self._pid(self._lost), after)

    def clear(self):
        """Kill what is still there."""
        for rank in {0, 1} - set(self.ends):
            with suppress(ProcessLookupError):
                if pid := self._pid(rank):
                    os.killpg(pid, signal.SIGKILL)

    def is_sound(self):
        """Whoever could not finish said who is lost; what was saved is whole."""
        for rank in self.left:
            if self.ends[rank][0] == 0:
                assert (self._run_dir / "run.json").exists(), self.text
                continue
            assert self.ends[rank][0] == 1, self.text
            said = [line for line in self._outs[rank].read_text().splitlines() if line.startswith("error")]
            assert said and all("rank" in line for line in said), self.text
        assert "Traceback" not in self.text
        for step in saved_steps(self._run_dir):
            assert problems_of(self._run_dir / f"global_step_{step}") == []
