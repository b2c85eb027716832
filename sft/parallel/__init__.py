"""Spread the model over the ranks.

mesh = build_mesh(world.size, device.type)     # who reads which data, who shards which weights, who shares a row
exchange_heads(model, mesh.sp_group)           # sp > 1: attention sees whole rows; the batches come from split_tokens
checkpoint_activations(layers, selective=...)  # optional
compile_layers(layers)                         # optional
shard(model, layers, mesh.fsdp, sharding)      # in place, after all of the above
begin_micro_batch(model, sharding, is_last=..) # before each forward: gradients are summed in the last backward
"""
