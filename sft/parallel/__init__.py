"""How the model is spread over the ranks.

mesh = build_mesh(world.size, device.type)     # who reads which data, who shards which weights, who shares a row
exchange_heads(model, mesh.sp_group)           # sp > 1: attention sees whole rows; the batches come from split_tokens
checkpoint_activations(model)                  # optional; before sharding
shard(model, layers, mesh.fsdp, compute_dtype) # in place
"""

from sft.parallel.activation import checkpoint_activations
from sft.parallel.fsdp import shard
from sft.parallel.mesh import Mesh, build_mesh
from sft.parallel.ulysses import exchange_heads, split_tokens

__all__ = ["Mesh", "build_mesh", "checkpoint_activations", "exchange_heads", "shard", "split_tokens"]
