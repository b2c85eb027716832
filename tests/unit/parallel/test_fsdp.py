"""What sharding does besides the numbers (tests/dist/test_sharding.py): groups, where weights live, when ranks talk."""

import pytest
import torch
from torch.distributed.fsdp._fully_shard import _fsdp_param_group

from sft.model.load import build_skeleton, decoder_layers, load_weights
from sft.model.pretrained import load_config
from sft.parallel.fsdp import Sharding, begin_micro_batch, join_layers, shard
from sft.parallel.mesh import build_mesh
from tests.assets import attention_on_cpu, tiny_model_dir

LAYERS = 4
IDS = torch.arange(24).view(2, 12)


@pytest.fixture
def directory(tmp_path):
    return tiny_model_dir(tmp_path, num_hidden_layers=LAYERS)


def sharded(directory, sharding):
    config = load_config(directory, trust_remote_code=False)
    attention = attention_on_cpu(config, packed=False)
    model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
    shard(model, decoder_layers(model), build_mesh(1, "cpu").fsdp, sharding)
    load_weights(model, directory, torch.device("cpu"), offload=sharding.offload)
    return model


def groups(model):
    states = [module._get_fsdp_state() for module in model.modules() if hasattr(module, "_get_fsdp_state")]
    return [group for state in dict.fromkeys(states) for group in state._fsdp_param_groups]


@pytest.mark.parametrize(("minimum", "sizes"), [(0, [1, 1, 1, 1, 1]), (10, [1] * 5), (11, [2, 2, 1]), (1000, [5])])
def test_layers_are_joined_until_they_hold_enough(minimum, sizes):
    layers = [torch.nn.Linear(5, 2, bias=False) for _ in range(5)]
    joined = [group if isinstance(group, list) else [group] for group in join_layers(layers, minimum)]
    assert [len(group) for group in joined] == sizes
    assert [layer for group in joined for layer in group] == layers


def test_a_group_is_gathered_at_once(directory, world_of_one):
    one_layer = sum(
        weight.numel() for weight in sharded(directory, Sharding(torch.float32)).model.layers[0].parameters()
    )
    model = sharded(directory, Sharding(torch.float32, min_group_params=one_layer + 1))
    assert len(groups(model)) == LAYERS // 2 + 1
    assert len(groups(sharded(directory, Sharding(torch.float32)))) == LAYERS + 1


@pytest.mark.parametrize("offload", [True, False])
def test_offload_reaches_every_weight_and_only_if_asked_for(directory, world_of_one, offload):
    model = sharded(directory, Sharding(torch.float32, offload=offload))
    parameters = [parameter for group in groups(model) for parameter in group.fsdp_params]
    assert len(parameters) == len(list(model.parameters()))
    assert all(parameter.offload_to_cpu == offload for parameter in parameters)


@pytest.mark.parametrize(("reduce_once", "reductions"), [(True, LAYERS + 1), (False, 3 * (LAYERS + 1))])
def test_gradients_are_summed_once_per_step_or_after_every_micro_batch(
    directory, world_of_one, monkeypatch, reduce_once, reductions
):
    calls = []
    reduce = _fsdp_param_group.foreach_reduce
    monkeypatch.setattr(_fsdp_param_group, "foreach_reduce", lambda *a, **k: (calls.append(1), reduce(*a, **k))[1])
    sharding = Sharding(torch.float32, reduce_once=reduce_once)
    model = sharded(directory, sharding)
    for number in range(3):
        begin_micro_batch(model, sharding, is_last=number == 2)
        model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
    assert len(calls) == reductions
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize(("reshard", "gathers"), [(True, 3 * (2 * LAYERS + 1)), (False, LAYERS + 1)])
def test_weights_that_stay_whole_are_gathered_once_per_step(directory, world_of_one, monkeypatch, reshard, gathers):
    calls = []
    group = _fsdp_param_group.FSDPParamGroup
    gather = group._to_unsharded
    monkeypatch.setattr(group, "_to_unsharded", lambda self: (calls.append(1), gather(self))[1])
    sharding = Sharding(torch.float32, reshard_after_forward=reshard)
    model = sharded(directory, sharding)
    for number in range(3):
        begin_micro_batch(model, sharding, is_last=number == 2)
        model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
    assert len(calls) == gathers
    assert all(group.is_sharded for group in groups(model)), "the optimizer changes the parts, not the whole"
