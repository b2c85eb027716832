"""Who is lost is said within seconds, also where the store does not answer; what a backend said is never lost."""

import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore

from sft.errors import OwnMishapError
from sft.parallel import lost_ranks
from sft.parallel.lost_ranks import is_about_other_ranks, is_out_of_memory, who_is_lost
from sft.parallel.world import LostRanksError, World, process_group

TIMEOUT = timedelta(seconds=20)
NCCL = "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:219, "
NO_MEMORY = [
    "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    f"{NCCL}unhandled cuda error. Last error: Cuda failure 2 'out of memory'",
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ...",
]
LOST = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4242",
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms for recv operation",
    f"{NCCL}remote process exited or there was a network error. ncclRemoteError",
]
OWN = [f"{NCCL}invalid usage, NCCL version 2.27", f"{NCCL}unhandled system error", "a shape is wrong", "timed out"]


@pytest.mark.parametrize("text", NO_MEMORY)
def test_every_form_of_no_memory_is_known_and_blames_no_other_rank(text):
    assert is_out_of_memory(RuntimeError(text)) and not is_about_other_ranks(RuntimeError(text))
    assert is_out_of_memory(dist.DistBackendError(text)) and not is_about_other_ranks(dist.DistBackendError(text))


@pytest.mark.parametrize("text", LOST)
def test_what_tells_of_another_rank(text):
    assert is_about_other_ranks(RuntimeError(text)) and not is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", OWN)
def test_what_failed_here_tells_of_no_other_rank(text):
    assert not is_about_other_ranks(RuntimeError(text)) and not is_out_of_memory(RuntimeError(text))


def test_nccls_own_text_is_said_and_nobody_is_declared_dead():
    alone = World(0, 1, 0)
    with pytest.raises(OwnMishapError, match=r"NCCL failed on rank 0 in .*: .*invalid usage"), process_group(alone):
        raise dist.DistBackendError(OWN[0])
    with pytest.raises(OwnMishapError, match=r"rank 0 is out of memory in .*: .*CUBLAS_"), process_group(alone):
        raise RuntimeError(NO_MEMORY[2])


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(lost_ranks, "ROLL_CALL_S", 0.05)
    monkeypatch.setattr(lost_ranks, "STORE_S", 0.1)
    monkeypatch.setattr(lost_ranks, "LAST_READ_S", 0.0)


def told(store, rank=0, size=2):
    return who_is_lost(store, World(rank, size, rank), TIMEOUT, "step 7", RuntimeError(LOST[0]))


def test_the_first_rank_that_is_left_names_the_others_and_keeps_what_the_backend_said(soon):
    store = HashStore()
    assert told(store).startswith("rank 0 was waiting in step 7 for rank 1, which died or gave no answer for 20 s")
    assert told(store).endswith(LOST[0])
    assert told(store, rank=1) == "", "rank 0 has said it"
    assert "every rank is there, and they cannot talk to each other" in told(store)


def test_a_store_that_never_answers_holds_nobody_up(soon):
    class Unreachable:
        def set(self, *_):
            threading.Event().wait(60)  # as a system call behind a cut cable does

    started = time.monotonic()
    assert "rank 0 is gone or cannot be reached" in told(Unreachable(), rank=1)
    assert "other ranks cannot be reached" in told(None)
    assert time.monotonic() - started < 5


def test_the_bound_of_the_documents_holds():
    """trainer.timeout_s + 10 s, of which a second is for what comes after."""
    assert lost_ranks.ROLL_CALL_S + lost_ranks.STORE_S + lost_ranks.LAST_READ_S <= 9


def test_ranks_that_never_meet_end_with_the_same_message(soon, monkeypatch):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr("sft.parallel.world._outlive_torchrun", lambda: None)  # nor should pytest
    told = r"(?s)rank 0 was waiting in .*other ranks cannot be reached.*1/2 clients joined"
    with pytest.raises(LostRanksError, match=told), process_group(World(0, 2, 0), timedelta(seconds=1)):
        raise AssertionError("there is no other rank")


def test_torch_errors_of_a_full_card_are_runtime_errors():
    """`process_group` looks at those alone."""
    assert issubclass(torch.OutOfMemoryError, RuntimeError)
