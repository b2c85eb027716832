"""Lay the ranks out on named axes: who reads which data, who shards which weights, who shares a row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout


@dataclass(frozen=True)
class Mesh:
    """The axes of the run.

    dp:   ranks that read different data (dp_replicate x dp_shard)
    fsdp: ranks that share the weights between them (dp_shard x sp); in front of it, where dp_replicate > 1, the ranks
          that hold the same part of them: [dp_replicate, fsdp]
    sp:   ranks that read the same data and share the tokens of every row between them
    """

    fsdp: DeviceMesh
    dp_replicate: int
    dp_size: int
    dp_rank: int
    sp_size: int
    sp_rank: int
    sp_group: dist.ProcessGroup


def build_mesh(
    world_size: int,
    device_type: str,
    *,
    sp_size: int = 1,
    dp_replicate: int = 1,
    timeout: timedelta = timedelta(minutes=30),
) -> Mesh:
    """Lay the ranks out as dp_replicate x dp_shard x sp, neighbours in the same sequence-parallel group.

    A rank waits for others of a group for `timeout` at most.
    """
    fsdp_size = world_size // dp_replicate
    data = init_device_mesh(device_type, (world_size // sp_size, sp_size), mesh_dim_names=("dp", "sp"))
    weights = init_device_mesh(device_type, (dp_replicate, fsdp_size), mesh_dim_names=("dp_replicate", "fsdp"))
    for group in (*data.get_all_groups(), *weights.get_all_groups()):
        _set_pg_timeout(timeout, group)  # groups that torch makes for a mesh have its default, not the world's timeout
    dp, sp = data["dp"], data["sp"]
    return Mesh(
        fsdp=weights if dp_replicate > 1 else weights["fsdp"],
        dp_replicate=dp_replicate,
        dp_size=dp.size(),
        dp_rank=dp.get_local_rank(),
        sp_size=sp.size(),
        sp_rank=sp.get_local_rank(),
        sp_group=sp.get_group(),
    )
