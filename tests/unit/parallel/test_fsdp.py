"""What sharding does besides the numbers (tests/dist/test_sharding.py): groups, where weights live, when ranks talk."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from sft.model.load import build_skeleton, decoder_layers, load_weights
from sft.model.lora import add_adapters
from sft.model.place import own_ends
from sft.model.pretrained import load_config
from sft.parallel.fsdp import Sharding, begin_micro_batch, class_name, join_layers, shard
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
    shard(model, decoder_layers(model), build_mesh(1, "cpu").fsdp, sharding, ends=own_ends(model))
    load_weights(model, directory, torch.device("cpu"), offload=sharding.offload)
    return model


def groups(model):
    states = [module._get_fsdp_state() for module in model.modules() if hasattr(module, "_get_fsdp_state")]
    return [group for state in dict.fromkeys(states) for group in _groups_of(state)]


def _groups_of(state):
    if hasattr(state, "_fsdp_param_groups"):
        return state._fsdp_param_groups
    return [state._fsdp_param_group] * (state._fsdp_param_group is not None)  # torch 2.11 has one at most


@pytest.mark.parametrize(("minimum", "sizes"), [(0, [1, 1, 1, 1, 1]), (10, [1] * 5), (11, [2, 2, 1]), (1000, [5])])
def test_layers_are_joined_until_they_hold_enough(minimum, sizes):
    layers = [torch.nn.Linear(5, 2, bias=False) for _ in range(5)]
    joined = [group if isinstance(group, list) else [group] for group in join_layers(layers, minimum)]
    assert [len(group) for group in joined] == sizes
    assert [layer for group in joined for layer in group] == layers


def test_a_class_keeps_the_name_that_its_author_gave_it(directory, world_of_one):
    model = sharded(directory, Sharding(torch.float32))
    assert type(model).__name__ == "FSDPQwen3ForCausalLM"
    assert class_name(model) == "Qwen3ForCausalLM"
    assert decoder_layers(model) == list(model.model.layers)
    assert class_name(torch.nn.Linear(1, 1)) == "Linear"


def test_layers_that_share_weights_are_one_group():
    """As Zamba's; with what is between them where the groups are larger."""
    layers = [torch.nn.Linear(5, 2, bias=False) for _ in range(4)]
    layers[3].weight = layers[1].weight
    assert join_layers(layers, 0) == [layers[0], [layers[1], layers[3]], layers[2]]
    assert join_layers(layers, 21) == [[layers[0], layers[1], layers[3], layers[2]]]


def test_a_group_is_gathered_at_once(directory, world_of_one):
    one_layer = sum(
        weight.numel() for weight in sharded(directory, Sharding(torch.float32)).model.layers[0].parameters()
    )
    model = sharded(directory, Sharding(torch.float32, min_group_params=one_layer + 1))
    assert len(groups(model)) == LAYERS // 2 + 1
    assert len(groups(sharded(directory, Sharding(torch.float32)))) == LAYERS + 1


def weights_by_group(model):
    """The names of the weights of every group outside of the layers, layers left out."""
    name_of = {id(weight): name for name, weight in model.named_parameters()}
    named = [[name_of[id(parameter.sharded_param)] for parameter in group.fsdp_params] for group in groups(model)]
    return sorted(names for names in named if ".layers." not in names[0])


def test_embedding_and_head_are_groups_of_their_own_unless_tied(directory, tmp_path, world_of_one):
    """So the embedding is not kept from forward to backward, nor the head from the first layer to the last."""
    embedding, head, norm = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
    assert weights_by_group(sharded(directory, Sharding(torch.float32))) == [[embedding, norm]]
    untied = sharded(tiny_model_dir(tmp_path / "untied", tie=False), Sharding(torch.float32))
    assert weights_by_group(untied) == [[head], [embedding], [norm]]
    gathered = []
    untied.model.norm.register_forward_hook(lambda *_: gathered.extend(are_gathered(untied)))
    logits = untied(input_ids=IDS, use_cache=False).logits
    assert gathered == [False, False], "the embedding is given back, the head is not gathered yet"
    assert are_gathered(untied) == [False, True], "backward begins with the head"
    logits.logsumexp(-1).sum().backward()
    assert not any(group.is_unsharded for group in groups(untied))


def untied_ends(model):
    return [model.model.embed_tokens, model.lm_head]


def are_gathered(model):
    return [_groups_of(end._get_fsdp_state())[0].is_unsharded for end in untied_ends(model)]


def test_an_end_with_an_adapter_stays_with_the_rest(directory, tmp_path):
    config = load_config(tiny_model_dir(tmp_path / "untied", tie=False), trust_remote_code=False)
    attention = attention_on_cpu(config, packed=False)
    model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
    assert own_ends(model) == untied_ends(model)
    options = {"dropout": 0.0, "use_rslora": False, "use_dora": False, "modules_to_save": [], "dtype": torch.float32}
    add_adapters(model, base="", rank=2, alpha=2, targets=["lm_head", "q_proj"], **options)
    assert own_ends(model) == [model.model.embed_tokens]


@pytest.fixture
def four_ranks_that_say_nothing():
    """A process group of four in which this process is rank 0 and nobody else exists: collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("reduce_once", "within"), [(True, 1), (False, 3)])
def test_replicas_add_their_gradients_once_per_step(
    directory, four_ranks_that_say_nothing, monkeypatch, reduce_once, within
):
    """Over the ranks that share the weights, they are summed as reduce_once says."""
    shared, added = count(monkeypatch, _fsdp_param_group, "foreach_reduce"), count(monkeypatch, dist, "all_reduce")
    config = load_config(directory, trust_remote_code=False)
    attention = attention_on_cpu(config, packed=False)
    model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
    sharding = Sharding(torch.float32, reduce_once=reduce_once)
    shard(model, decoder_layers(model), build_mesh(4, "cpu", dp_replicate=2).fsdp, sharding)
    model.to_empty(device="cpu")
    for number in range(3):
        begin_micro_batch(model, sharding, is_last=number == 2)
        model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
    assert (len(shared), len(added)) == (within * (LAYERS + 1), LAYERS + 1)


def test_frozen_bytes_are_sharded_as_they_are(world_of_one):
    """Those of a base in 4 bits, beside weights that train: torch 2.11 would ask them to require gradients."""
    layer = torch.nn.Linear(4, 3, device="meta")
    layer.codes = torch.nn.Parameter(torch.empty(4, 2, dtype=torch.uint8, device="meta"), requires_grad=False)
    shard(torch.nn.Sequential(layer), [layer], build_mesh(1, "cpu").fsdp, Sharding(torch.bfloat16))
    assert {name: (part.dtype, part.requires_grad) for name, part in layer.named_parameters()} == {
        "weight": (torch.float32, True),
        "bias": (torch.float32, True),
        "codes": (torch.uint8, False),
    }
    assert all(isinstance(part, DTensor) for part in layer.parameters())


class Quotients(TorchDispatchMode):
    """The elements of every quotient of numbers of more than one."""

    def __init__(self):
        super().__init__()
        self.elements = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.div.Tensor, torch.ops.aten.div.Scalar):
            self.elements.append(made.numel())
        return made


def test_a_rank_alone_does_not_divide_its_gradients(directory, world_of_one):
    """Not by 1 either: torch makes a copy of all of a group's to do it."""
    model = sharded(directory, Sharding(torch.float32))
    loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum()
    with Quotients() as quotients:
        loss.backward()
    smallest_group = sum(weight.numel() for weight in model.model.layers[0].parameters())
    assert max(quotients.elements, default=0) < smallest_group


def count(monkeypatch, module, name):
    """Return a list that grows with every call of a function."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: (calls.append(1), function(*a, **k))[1])
    return calls


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
    calls = count(monkeypatch, _fsdp_param_group, "foreach_reduce")
    sharding = Sharding(torch.float32, reduce_once=reduce_once)
    model = sharded(directory, sharding)
    for number in range(3):
        begin_micro_batch(model, sharding, is_last=number == 2)
        model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
    assert len(calls) == reductions
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize(("reshard", "gathers"), [(True, 3 * (2 * LAYERS + 1)), (False, LAYERS + 1)])
def test_weights_that_stay_whole_are_gathered_once_per_step(directory, world_of_one, monkeypatch, reshard, gathers):
    calls = count(monkeypatch, _fsdp_param_group.FSDPParamGroup, "_to_unsharded")
    sharding = Sharding(torch.float32, reshard_after_forward=reshard)
    model = sharded(directory, sharding)
    for number in range(3):
        begin_micro_batch(model, sharding, is_last=number == 2)
        model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum().backward()
    assert len(calls) == gathers
    assert all(group.is_sharded for group in groups(model)), "the optimizer changes the parts, not the whole"
