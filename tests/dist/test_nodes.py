"""Two nodes of one rank are one node of two ranks: the same losses, bit for bit."""

import subprocess
import uuid

import pytest

from tests.launch import MARK, REPOSITORY, clean_environment, free_port, kill_marked, read_metrics
from tests.networks import two_networks

STEPS = ["trainer.total_training_steps=3", "use_remove_padding=true"]
SPLITS = {"data": [], "sequence": ["ulysses_sequence_parallel_size=2"]}


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
