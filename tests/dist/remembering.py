"""Two ranks that save an odd optimizer's state and go on from it: `torchrun -m tests.dist.remembering DIRECTORY`.

The first weight has 3 rows: rank 0 holds two of them, rank 1 one. The last has 1 row, of which rank 1 holds nothing.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from sft.checkpoint import Saver, load
from sft.checkpoint.manifest import CheckpointError
from sft.parallel.shards import local_part
from sft.parallel.world import World, process_group
from sft.types import TrainState
from tests.optimizers import Odd
from tests.runs import ABOUT

MAKERS = {"odd": lambda w: Odd(w), "momentum": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9)}


def build(make, sharded=True):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 3), torch.nn.Linear(3, 1))
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, make(model.parameters())


def train(model, optimizer, steps):
    for step in steps:
        x = torch.randn(4, 20, generator=torch.Generator().manual_seed(10 * step + dist.get_rank()))
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def parts(model, optimizer):
    """Everything this rank holds, weights and what is remembered of them."""
    values = [value for weight in model.parameters() for value in optimizer.state[weight].values()]
    held = [local_part(value).clone() if isinstance(value, torch.Tensor) else value for value in values]
    return [local_part(weight).detach().clone() for weight in model.parameters()] + held


def same(a, b):
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def save(directory, world, model, optimizer):
    directory.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    saver = Saver(directory, world=world, about=ABOUT | {"fingerprint": {}}, keep=None, in_background=True)
    return saver.save("STATE", TrainState(step=3, updates=3), model, optimizer, write_model=print, wait=True)


def main(directory: Path) -> None:
    world = World.from_environment()
    with process_group(world):
        for name, make in MAKERS.items():
            model, optimizer = build(make)
            train(model, optimizer, range(3))
            checkpoint = save(directory / name, world, model, optimizer)
            at_save = parts(model, optimizer)
            train(model, optimizer, range(3, 5))

            again, other = build(make)
            load(checkpoint, again, other, world=world, fingerprint={})
            assert same(parts(again, other), at_save), f"{name}: another state than was saved"
            train(again, other, range(3, 5))
            assert same(parts(again, other), parts(model, optimizer)), f"{name}: resumed, it goes another way"

            alone, its = build(make, sharded=False)  # as one rank has it
            try:
                load(checkpoint, alone, its, world=world, fingerprint={})
            except CheckpointError as error:
                print(f"{name} rank {world.rank} is refused: {error}", flush=True)
                continue
            back, of_back = build(make)
            load(save(directory / f"{name}_alone", world, alone, its), back, of_back, world=world, fingerprint={})
            assert same(parts(back, of_back), at_save), f"{name}: another state after one rank than before"
            print(f"{name} rank {world.rank} goes on alone and back", flush=True)
            del model, optimizer, again, other, back, of_back


if __name__ == "__main__":
    main(Path(sys.argv[1]))
