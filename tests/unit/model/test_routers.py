"""The load-balancing loss of routers: equal to transformers' own, and the same whatever the split."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from sft.data.order.collate import collate
from sft.errors import InputError
from sft.model.load import build_skeleton, decoder_layers
from sft.model.routers import watch_routers
from sft.parallel.activation import checkpoint_activations
from sft.parallel.world import World, process_group
from sft.train.loss import token_ce_sum
from tests.assets import attention_on_cpu
from tests.models import config_of, samples

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def alone():
    with process_group(World(0, 1, 0)):
        yield


def watched(family, asked=1.0, **overrides):
    """A model with numbers, and its hooks."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family, **overrides), dtype=torch.float32)
    watch_routers(model, asked)
    return model


def of_step(model, *batches):
    """(load-balancing loss of a step, what it adds to the gradients, the largest share of an expert)."""
    routers, total = model.routers, 0.0
    routers.begin_step(lambda batch: token_ce_sum(model, batch), batches, CPU)
    for batch in batches:
        with routers.watching(batch):
            token_ce_sum(model, batch)
        loss = routers.loss()
        loss.backward()
        total += loss.item()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    most = routers.to_be_summed().get("largest_expert")  # of one rank: the sum itself
    share = None if most is None else most.item() / sum(batch.counts.tokens for batch in batches)
    return total, gradients, share


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_one_micro_batch_gives_what_transformers_gives(family, packed):
    """Padded rows against transformers with a mask; packed ones against the same rows, each token counted once."""
    model, rows = watched(family), samples()
    padded = collate(rows, packed=False, pad_id=0)
    theirs = model(
        padded.input_ids, attention_mask=padded.is_token.long(), output_router_logits=True, use_cache=False
    ).aux_loss
    theirs.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    batches = [collate([row], packed=True, pad_id=0) for row in rows] if packed else [padded]
    loss, gradients, _ = of_step(model, *batches)
    assert loss == pytest.approx(theirs.item(), rel=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_the_split_into_micro_batches_does_not_change_it():
    model = watched("qwen3_moe")
    one = of_step(model, collate(samples(), packed=False, pad_id=0))
    rows = samples()
    for batches in ([rows[:1], rows[1:]], [[row] for row in rows], [rows, []]):
        loss, gradients, share = of_step(model, *(collate(part, packed=False, pad_id=0) for part in batches))
        assert (loss, share) == (pytest.approx(one[0], rel=1e-6), one[2])
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, one[1][name], rtol=1e-4, atol=1e-6)


def test_every_token_on_one_expert_is_seen():
    model = watched("qwen3_moe")
    batch = collate(samples(), packed=False, pad_id=0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()  # all equal: the first two of four have everything
    loss, _, share = of_step(model, batch)
    assert (loss, share) == (pytest.approx(2.0), 1.0)


def test_a_share_is_counted_without_a_loss():
    model = watched("qwen3_moe", asked=0.0)
    routers, batch = model.routers, collate(samples(), packed=False, pad_id=0)
    routers.begin_step(lambda _: pytest.fail("nothing is to be counted first"), [batch, batch], CPU)
    with routers.watching(batch):
        token_ce_sum(model, batch)
    assert routers.loss() == 0.0
    told = routers.to_be_summed()
    assert told.keys() == {"largest_expert"} and 0.5 <= told["largest_expert"].item() / batch.counts.tokens < 1.0


def test_models_without_experts_have_nothing_to_tell():
    model = watched("qwen3", asked=None)
    batch = collate(samples(), packed=False, pad_id=0)
    with model.routers.watching(batch):
        token_ce_sum(model, batch)
    assert model.routers.loss() == 0.0 and model.routers.to_be_summed() == {}


@pytest.mark.parametrize(
    ("asked", "in_config", "expected"),
    [
        (None, {"output_router_logits": True, "router_aux_loss_coef": 0.02}, 0.02),
        (None, {"output_router_logits": False, "router_aux_loss_coef": 0.02}, 0.0),
        (0.0, {"output_router_logits": True, "router_aux_loss_coef": 0.02}, 0.0),
        (0.3, {"output_router_logits": False, "router_aux_loss_coef": 0.02}, 0.3),
    ],
)
def test_null_is_what_config_json_asks_for(asked, in_config, expected):
    config = config_of("qwen3_moe", **in_config)
    attention = attention_on_cpu(config, packed=False)
    model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
    watch_routers(model, asked)
    assert model.routers.coefficient == expected


def test_what_has_no_such_loss_is_refused():
    with pytest.raises(InputError, match=r"model\.router_aux_loss=0\.1 asks .* Qwen3ForCausalLM has no routers .*=0"):
        watched("qwen3", asked=0.1)


def test_recomputation_in_backward_is_not_counted_again():
    model = watched("qwen3_moe")
    plain = of_step(model, collate(samples(), packed=False, pad_id=0))
    checkpoint_activations(decoder_layers(model), selective=False)
    again = of_step(model, collate(samples(), packed=False, pad_id=0))
    assert again[0] == pytest.approx(plain[0], rel=1e-6) and again[2] == plain[2]
    for name, gradient in again[1].items():
        torch.testing.assert_close(gradient, plain[1][name], rtol=1e-4, atol=1e-6)


def test_the_loss_of_many_tokens_is_that_of_fp64():
    routers, tokens = watched("qwen3_moe").routers, 200_000
    logits = torch.randn(tokens, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    routers.begin_step(lambda batch: None, [], CPU)
    routers._logits, routers._is_token = [logits], torch.ones(tokens, dtype=torch.bool)
    exact = logits.detach().double().requires_grad_()
    shares = exact.softmax(-1)
    chosen = torch.zeros(tokens, 8, dtype=torch.float64).scatter_(1, shares.topk(routers._top_k).indices, 1.0)
    expected = 8 * (chosen.mean(dim=0) * shares.mean(dim=0)).sum()
    loss = routers.loss()
    assert loss.item() == pytest.approx(routers.coefficient * expected.item(), rel=1e-6)
    assert routers.to_be_summed()["router_aux_loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    (found,), (true,) = (torch.autograd.grad(one, of) for one, of in ((loss, logits), (expected, exact)))
    assert (found.double() / routers.coefficient - true).norm() < 1e-4 * true.norm()  # of shares that all but cancel
