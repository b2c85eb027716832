"""The same memory again and again, holding what the tensors were at the last copy."""

import gc
import mmap
from pathlib import Path

import pytest
import torch

from sft.parallel.host_memory import HostMemory, _lock_pages, available_bytes, limit_bytes, resident_bytes


def some_tensors():
    return {
        "matrix": torch.randn(3, 5),
        "transposed": torch.randn(4, 7, dtype=torch.bfloat16).t(),
        "scalar": torch.tensor(2.5),
        "odd": torch.arange(3, dtype=torch.uint8),
        "last": torch.randn(9, requires_grad=True),
    }


def addresses(tensors):
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def test_a_copy_is_equal_contiguous_and_apart():
    tensors = some_tensors()
    copies = HostMemory().copy(tensors)
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.zero_()
    assert list(copies) == list(tensors)
    for name, copy in copies.items():
        assert torch.equal(copy, before[name]) and copy.dtype == before[name].dtype and copy.is_contiguous()
        assert not copy.requires_grad


def test_the_second_copy_is_in_the_memory_of_the_first():
    memory = HostMemory()
    first = memory.copy(some_tensors())
    tensors = some_tensors()
    second = memory.copy(tensors)
    assert addresses(first) == addresses(second)
    assert all(torch.equal(second[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("change", ["name", "shape", "dtype"])
def test_other_tensors_get_memory_of_their_own(change):
    memory, one = HostMemory(), torch.arange(6.0)
    first = memory.copy({"a": one})
    name, other = {"name": ("b", one), "shape": ("a", one.view(2, 3)), "dtype": ("a", one.double())}[change]
    second = memory.copy({name: other + 1})
    assert torch.equal(second[name], other + 1) and torch.equal(first["a"], one)


def test_nothing_to_copy():
    assert HostMemory().copy({}) == {}


class FakeCuda:
    """cudaHostRegister and its opposite, noting the ranges that are locked."""

    def __init__(self, error=0):
        self.locked, self.error = {}, error

    def cudaHostRegister(self, address, size, flags):
        self.locked[address] = size
        return self.error

    def cudaHostUnregister(self, address):
        del self.locked[address]


def test_pages_are_locked_for_as_long_as_anything_in_them_lives(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr("torch.cuda.cudart", lambda: cuda)
    block = torch.empty(100, dtype=torch.uint8)
    _lock_pages(block)
    assert cuda.locked == {block.data_ptr(): 100}
    part = block[64:].view(torch.float32)
    del block
    gc.collect()
    assert cuda.locked
    del part
    gc.collect()
    assert not cuda.locked


def test_memory_that_cannot_be_locked_is_used_as_it_is_and_said(monkeypatch):
    monkeypatch.setattr("sft.parallel.host_memory._forget_last_error", lambda: None)
    monkeypatch.setattr("torch.cuda.cudart", lambda: FakeCuda(error=2))
    said = []
    monkeypatch.setattr("sft.parallel.host_memory.log.warning", lambda message, *values: said.append(message % values))
    _lock_pages(torch.empty(100, dtype=torch.uint8))
    assert "cannot be page-locked (CUDA error 2)" in said[0] and "ulimit -l" in said[0]


def test_the_error_of_a_failed_lock_does_not_come_up_in_the_next_kernel(monkeypatch):
    """CUDA keeps it until it is asked, and every launch of a kernel asks."""
    cuda, launch = FakeCuda(error=2), torch.ones

    def launch_on_cuda(*shape, device):
        error, cuda.error = cuda.error, 0
        if error:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return launch(*shape)

    monkeypatch.setattr("torch.cuda.cudart", lambda: cuda)
    monkeypatch.setattr(torch, "ones", launch_on_cuda)
    _lock_pages(torch.empty(100, dtype=torch.uint8))
    assert torch.ones(1, device="cuda") == 1


def computer(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    3000 kB\n"}
GROUP = "sys/fs/cgroup/"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 3000 * 1024),
        ({"memory.max": "max\n", "memory.current": "5\n", "memory.stat": ""}, 3000 * 1024),
        ({"memory.max": "5000\n", "memory.current": "4000\n", "memory.stat": "anon 3\ninactive_file 500\n"}, 1500),
        ({"memory.max": "5000\n", "memory.current": "6000\n", "memory.stat": "inactive_file 0\n"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "5000\n",
                "memory/memory.usage_in_bytes": "4000\n",
                "memory/memory.stat": "total_inactive_file 7\n",
            },
            1007,
        ),
    ],
)
def test_what_is_left_of_the_memory_is_that_of_the_computer_within_the_containers_limit(tmp_path, files, expected):
    root = computer(tmp_path, MEMINFO | {GROUP + name: text for name, text in files.items()})
    assert available_bytes(root) == expected


def test_this_computer_has_some():
    assert 2**20 < available_bytes() < limit_bytes() < 2**50


@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_container_has_what_it_may_use_and_the_whole_computer_without_a_limit(tmp_path, file):
    whole = limit_bytes(tmp_path)
    assert limit_bytes(computer(tmp_path / "small", {GROUP + file: "2000000"})) == 2_000_000
    assert limit_bytes(computer(tmp_path / "free", {GROUP + file: "max"})) == whole > 10**8


STEP = "slurm/job_7/step_0"
HOLDS = {
    "of the step": (2, f"{STEP}/memory.max"),
    "of the job around it": (2, "slurm/job_7/memory.max"),
    "of the container, which sees itself as the root": (2, "memory.max"),
    "of the step, version 1": (1, f"memory/{STEP}/memory.limit_in_bytes"),
    "of the job around it, version 1": (1, "memory/slurm/job_7/memory.limit_in_bytes"),
}


@pytest.mark.parametrize(("version", "limited"), HOLDS.values(), ids=HOLDS)
def test_every_group_around_this_process_has_a_limit_that_holds(tmp_path, version, limited):
    """A scheduler limits its jobs, and not the container that the computer is."""
    groups = {2: f"0::/{STEP}\n", 1: f"5:cpu,cpuacct:/\n4:memory:/{STEP}\n0::/elsewhere\n"}
    files = {
        "memory.max": "max",
        f"{STEP}/memory.max": "max",
        f"memory/{STEP}/memory.limit_in_bytes": "9223372036854771712",
        limited: "2000000",
        str(Path(limited).with_name("memory.current")): "1500000",
        str(Path(limited).with_name("memory.usage_in_bytes")): "1500000",
        str(Path(limited).with_name("memory.stat")): "total_inactive_file 300\ninactive_file 300",
    }
    here = MEMINFO | {"proc/self/cgroup": groups[version]} | {GROUP + name: text for name, text in files.items()}
    root = computer(tmp_path, here)
    assert limit_bytes(root) == 2_000_000
    assert available_bytes(root) == 500_300


def test_what_this_process_holds_grows_by_what_it_takes(tmp_path):
    before = resident_bytes()
    with mmap.mmap(-1, 50_000_000) as taken:  # an allocator might reuse what it holds
        taken.write(bytes([1]) * 50_000_000)
        assert 45e6 < resident_bytes() - before < 110e6
    assert resident_bytes(tmp_path) == 0, "where the system does not say"
