"""Under which keys the ranks meet - a restart must not find those of the ranks that died - what each one draws, and
how they add up."""

import logging
import re
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError

from sft.errors import BugError, InputError, MishapError
from sft.parallel.world import (
    ALL_RANKS,
    World,
    _keys_of_this_run,
    _meet,
    on_every_rank,
    seed_rank,
    sum_by_name,
    sum_over,
)

RANK_0 = World(0, 2, 0)


def test_a_port_in_use_is_named_with_the_way_to_another_one(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", port)
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
        with pytest.raises(InputError, match=rf"port {port}, .* is in use .* MASTER_PORT=29501"):
            _meet(World(0, 1, 0), timedelta(seconds=20))


def keys(monkeypatch, **torchrun_sets):
    """The prefix without the number of the run in this process."""
    for name in ("GROUP_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in torchrun_sets.items():
        monkeypatch.setenv(name, value)
    return _keys_of_this_run(RANK_0).rpartition("_")[2]


def test_every_rank_draws_its_own_numbers_and_the_same_ones_again():
    def drawn(seed: int, rank: int) -> list[float]:
        seed_rank(seed, World(rank=rank, size=2, local_rank=rank))
        return torch.rand(4).tolist()

    with torch.random.fork_rng():
        assert drawn(1, 0) == drawn(1, 0)
        assert len({tuple(drawn(seed, rank)) for seed in (1, 2) for rank in (0, 1)}) == 4


def test_every_run_and_every_restart_has_keys_of_its_own(monkeypatch):
    assert _keys_of_this_run(RANK_0) != _keys_of_this_run(RANK_0)
    first, second = (keys(monkeypatch, TORCHELASTIC_RESTART_COUNT=count) for count in ("0", "1"))
    assert first != second


@pytest.mark.parametrize(("own_store", "warned"), [("0", True), ("1", False)])
def test_nodes_that_count_restarts_differently_meet_and_need_a_new_store(monkeypatch, caplog, own_store, warned):
    monkeypatch.setattr(logging.getLogger("sft"), "propagate", True)
    nodes = {"GROUP_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
    nodes["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = own_store
    assert keys(monkeypatch, **nodes, TORCHELASTIC_RESTART_COUNT="1") == keys(
        monkeypatch, **nodes, TORCHELASTIC_RESTART_COUNT="0"
    )
    assert ("Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in caplog.text) == warned


def test_sums_of_numbers_and_of_tensors_are_exact_and_in_order(world_of_one):
    loss = torch.tensor(0.5, requires_grad=True)
    assert sum_over(ALL_RANKS, 2**53 - 1, loss, True, torch.tensor(2.0**60, dtype=torch.float64)) == [
        2**53 - 1,
        0.5,
        1.0,
        2.0**60,
    ]
    assert sum_over(ALL_RANKS, 3) == [3.0]


def test_sums_come_back_under_the_names_they_went_out_with(world_of_one):
    """By position, two swapped lines would go unnoticed."""
    values = {"tokens": 5, "loss": torch.tensor(0.5), "samples": 2}
    assert sum_by_name(ALL_RANKS, values) == {"samples": 2.0, "tokens": 5.0, "loss": 0.5}


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (InputError("bad"), InputError),
        (MishapError("gone"), MishapError),
        (OSError("no space"), MishapError),
        (SafetensorError("no space"), MishapError),
        (MemoryError("no room"), MishapError),
        (torch.OutOfMemoryError("no room"), MishapError),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), MishapError),
        (RuntimeError("shape mismatch"), BugError),
        (AttributeError("'NoneType' object has no attribute 'name'"), BugError),
        (ValueError("3 is not 4"), BugError),
        (AssertionError("never"), BugError),
    ],
    ids=repr,
)
def test_only_the_input_and_the_machine_become_sentences_and_a_bug_keeps_its_cause(world_of_one, cause, kind):
    def fail():
        raise cause

    told = re.escape(f"saving failed: rank 0: {type(cause).__name__}: {cause}")
    with pytest.raises((InputError, BugError), match=told) as raised:
        on_every_rank("saving", fail)
    assert raised.type is kind
    assert raised.value.__cause__ is cause


@pytest.mark.parametrize(
    ("of_ranks", "kind"),
    [
        ([InputError, InputError], InputError),
        ([InputError, MishapError], MishapError),
        ([MishapError, BugError], BugError),
        ([InputError, BugError], BugError),
    ],
)
def test_all_ranks_raise_the_same_and_a_rank_that_only_hears_of_a_bug_has_no_cause(monkeypatch, of_ranks, kind):
    def gather(outcomes, mine):
        outcomes[:] = [(None, f"rank {rank}: it failed", of_rank) for rank, of_rank in enumerate(of_ranks)]

    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(kind, match="saving failed: rank 0: it failed; rank 1: it failed") as raised:
        on_every_rank("saving", lambda: None)
    assert raised.type is kind
    assert raised.value.__cause__ is None


def test_a_rank_that_lost_the_others_does_not_wait_for_them_to_hear_of_it(monkeypatch):
    def lose():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer")

    monkeypatch.setattr(dist, "all_gather_object", lambda *_: pytest.fail("the group is gone"))
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        on_every_rank("saving", lose)
