"""A cable between two nodes that is cut, before ranks meet or between steps: every rank ends in time and says so."""

import json
import random
import time
from contextlib import ExitStack

import pytest

from sft.checkpoint.find import problems_of
from tests.fault.faults import FAULTS, PATIENCE_S, last_step, saved_steps
from tests.launch import clean_environment, warm_process
from tests.networks import ADDRESSES, ip, two_networks

PARTED, NEVER_MET = "cable between two nodes cut", "nodes that never meet"
AT_ONCE = 3  # pairs of nodes: they mostly wait
TIMEOUT_S = 5
BOUND_S = TIMEOUT_S + 10.0
"""As docs/resume.md promises."""


@pytest.mark.timeout(0 if FAULTS > 3 else 300)
def test_both_sides_of_a_cut_cable_end_in_time_and_say_who_is_unreachable(command, tmp_path, rows):
    dice = random.Random(14)
    for first in range(0, FAULTS, AT_ONCE):
        with ExitStack() as stack:
            pairs = [Pair(stack, command, tmp_path, number) for number in range(first, min(first + AT_ONCE, FAULTS))]
            ended = tmp_path / f"ended_{first}"
            start([rank for pair in pairs for rank in pair.ranks], ended, tmp_path)
            for pair in pairs:
                pair.is_parted(dice)
                rows[pair.kind].injected += 1
            assert warm_process().exit_code() == 0
            ends = [line.split() for line in ended.read_text().splitlines()]
            for place, code, at in sorted(ends):
                pair = pairs[int(place) // 2]
                assert int(code) == 1, pair.text
                rows[pair.kind].ended.append(float(at) - pair.parted_at)
                assert rows[pair.kind].ended[-1] < BOUND_S, pair.text
            for pair in pairs:
                pair.is_sound()
                rows[pair.kind].survived += 1


def start(ranks, ended, cwd):
    log = cwd / f"{ended.name}.log"
    log.touch()
    warm_process().order(
        module="tests.fault.nodes",
        arguments=[str(ended), json.dumps(ranks)],
        ranks=0,
        cwd=str(cwd),
        environment=clean_environment(),
        stdout=str(log),
        stderr=str(log),
    )


class Pair:
    """Two nodes of one rank each, with a run of their own."""

    def __init__(self, stack, command, home, number):
        nodes = stack.enter_context(two_networks())
        if not nodes[0][0]:
            pytest.skip("no network namespaces may be made here")
        self.kind = NEVER_MET if number % 3 == 2 else PARTED
        self._spaces, self._cables = [enter[-1] for enter, _, _ in nodes], [cable for _, _, cable in nodes]
        self._run_dir = home / f"run_{number}"
        self._outs = [home / f"{number}_{rank}.out" for rank in range(2)]
        for out in self._outs:
            out.touch()
        overrides = [*command, f"trainer.timeout_s={TIMEOUT_S}", f"trainer.default_local_dir={self._run_dir}"]
        self.ranks = [
            {
                "network": self._spaces[rank],
                "environment": {
                    **{"RANK": str(rank), "GROUP_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"},
                    **{"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": self._cables[rank]},
                    **{"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500", "RES_OPTIONS": "timeout:1 attempts:1"},
                },
                "overrides": overrides,
                "out": str(out),
            }
            for rank, out in enumerate(self._outs)
        ]

    @property
    def text(self):
        return "\n".join(f"rank {rank}: {out.read_text(errors='replace')}" for rank, out in enumerate(self._outs))

    def is_parted(self, dice):
        """Cut the cable at one of its ends, or take an address away: at once, or after some steps."""
        node, steps = dice.randrange(2), dice.randrange(1, 30)
        space, cable = self._spaces[node], self._cables[node]
        cut = dice.choice([("link", "set", cable, "down"), ("addr", "flush", "dev", cable)])
        if self.kind == NEVER_MET:
            assert ip("-n", space, *cut)
            self._wait(lambda: self._outs[0].stat().st_size)  # it begins
        else:
            self._wait(lambda: last_step(self._run_dir) >= steps)
            assert ip("-n", space, *cut)
        self.parted_at = time.monotonic()

    def _wait(self, happens):
        deadline = time.monotonic() + PATIENCE_S
        while not happens():
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)

    def is_sound(self):
        """Both sides said who is unreachable; what was saved is whole."""
        said = [[line for line in out.read_text().splitlines() if line.startswith("error")] for out in self._outs]
        assert all(said), self.text
        assert all("rank" in line for lines in said for line in lines), self.text
        assert "Traceback" not in self.text
        if steps := saved_steps(self._run_dir):
            assert problems_of(self._run_dir / f"global_step_{steps[-1]}") == []
