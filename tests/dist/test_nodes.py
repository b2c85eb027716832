"""Two nodes of one rank are one node of two ranks: the same losses, bit for bit."""

import shutil
import subprocess
import uuid
from contextlib import contextmanager

import pytest

from tests.launch import MARK, REPOSITORY, clean_environment, free_port, kill_marked, read_metrics

STEPS = ["trainer.total_training_steps=3", "use_remove_padding=true"]
SPLITS = {"data": [], "sequence": ["ulysses_sequence_parallel_size=2"]}


@contextmanager
def two_networks():
    """For each node: what puts a command into its network, its address and its interface.

    Two network namespaces joined by a virtual cable, so that nothing can go through localhost; where this user may
    not make them, both nodes are on localhost.
    """
    name = f"sft{uuid.uuid4().hex[:6]}"
    spaces, cables = [f"{name}a", f"{name}b"], [f"{name}x", f"{name}y"]
    addresses = ["10.213.77.1", "10.213.77.2"]

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0

    try:
        made = bool(shutil.which("ip")) and all(
            [
                *(ip("netns", "add", space) for space in spaces),
                ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1]),
                *(ip("link", "set", cable, "netns", space) for space, cable in zip(spaces, cables, strict=True)),
                *(
                    ip("-n", space, "addr", "add", f"{address}/24", "dev", cable)
                    for space, cable, address in zip(spaces, cables, addresses, strict=True)
                ),
                *(ip("-n", space, "link", "set", "lo", "up") for space in spaces),
                *(ip("-n", space, "link", "set", cable, "up") for space, cable in zip(spaces, cables, strict=True)),
            ]
        )
        if made:
            entered = [["ip", "netns", "exec", space] for space in spaces]
            yield list(zip(entered, addresses, cables, strict=True))
        else:
            yield [([], "127.0.0.1", "lo")] * 2
    finally:
        for space in spaces:
            ip("netns", "del", space)


def train_on_two_nodes(overrides, *, cwd, timeout_s=120):
    """scripts/train.sh on both nodes at once, as docs/launch.md says."""
    mark, port = uuid.uuid4().hex, free_port()
    with two_networks() as nodes:
        agents = [
            subprocess.Popen(
                [*enter, "bash", str(REPOSITORY / "scripts" / "train.sh"), *overrides],
                cwd=cwd,
                env=clean_environment()
                | {MARK: mark, "NNODES": "2", "NPROC_PER_NODE": "1", "MAX_RESTARTS": "0", "NODE_RANK": str(rank)}
                | {"MASTER_ADDR": nodes[0][1], "MASTER_PORT": str(port), "PET_LOCAL_ADDR": address}
                # Without a name server there: say who keeps the store, and do not wait for names.
                | {"PET_RDZV_CONF": f"is_host={int(rank == 0)}", "RES_OPTIONS": "timeout:1 attempts:1"}
                | {"GLOO_SOCKET_IFNAME": interface},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank, (enter, address, interface) in enumerate(nodes)
        ]
        try:
            told = [agent.communicate(timeout=timeout_s)[0] for agent in agents]
        finally:
            kill_marked(mark)
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(told)
    return told


@pytest.mark.parametrize("split", SPLITS)
def test_two_nodes_of_one_rank_equal_one_node_of_two(base, run_all, tmp_path, split):
    overrides = [*base, *STEPS, *SPLITS[split]]
    (one_node,) = run_all([overrides], 2)
    told = train_on_two_nodes([*overrides, f"trainer.default_local_dir={tmp_path / 'two_nodes'}"], cwd=tmp_path)
    two_nodes = read_metrics(tmp_path / "two_nodes")
    for key in ("train/loss", "train/grad_norm", "train/num_input_tokens_seen"):
        assert [line[key] for line in two_nodes] == [line[key] for line in one_node]
    assert "".join(told).count("step = ") == 1, "both nodes believe to be the first"
