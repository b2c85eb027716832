"""How the model is spread over the ranks.

mesh = build_mesh(world.size, device.type)     # who reads which data, who shards which weights
checkpoint_activations(model)                  # optional; before sharding
shard(model, layers, mesh.fsdp, compute_dtype) # in place
"""

from sft.parallel.activation import checkpoint_activations
from sft.parallel.fsdp import shard
from sft.parallel.mesh import Mesh, build_mesh

__all__ = ["Mesh", "build_mesh", "checkpoint_activations", "shard"]
