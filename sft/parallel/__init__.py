"""How the model is spread over the ranks.

mesh = build_mesh(world.size, device.type)     # who reads which data, who shards which weights, who shares a row
exchange_heads(model, mesh.sp_group)           # sp > 1: attention sees whole rows; the batches come from split_tokens
checkpoint_activations(layers, selective=...)  # optional
compile_layers(layers)                         # optional
shard(model, layers, mesh.fsdp, sharding)      # in place, after all of the above
begin_micro_batch(model, sharding, is_last=..) # before each forward: gradients are summed in the last backward
"""

from sft.parallel.activation import checkpoint_activations, compile_layers
from sft.parallel.fsdp import Sharding, begin_micro_batch, shard
from sft.parallel.mesh import Mesh, build_mesh
from sft.parallel.ulysses import exchange_heads, refuse_impossible_split, split_tokens

__all__ = [
    "Mesh",
    "Sharding",
    "begin_micro_batch",
    "build_mesh",
    "checkpoint_activations",
    "compile_layers",
    "exchange_heads",
    "refuse_impossible_split",
    "shard",
    "split_tokens",
]
