"""The loss against the definition, written out; and gradients, parameter by parameter, across layouts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sft.data.order.collate import collate
from sft.model.logits import learn_logit_form
from sft.model.loss_form import LossForm
from sft.train.loss import _by_source, token_ce_sum, token_ce_sum_and_hits
from sft.types import Sample
from tests.assets import boundaries, tiny_model_dir
from tests.models import Watch, load_sharded


@pytest.fixture(scope="module")
def samples():
    random = np.random.default_rng(0)
    made = []
    for length in (5, 17, 9, 30):
        weights = random.choice([0.0, 0.5, 1.0], size=length).astype(np.float32)
        weights[-1] = 1.0
        made.append(Sample(random.integers(3, 400, length).astype(np.int32), weights))
    return made


def by_definition(model, samples):
    """Σ over samples and positions of w[t+1] · CE(logits[t], ids[t+1])."""
    total = torch.zeros(())
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        logits = model(ids[None], position_ids=torch.arange(len(ids))[None], use_cache=False).logits[0]
        ce = F.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
        total = total + (ce * torch.from_numpy(sample.loss_weights[1:])).sum()
    return total


@pytest.mark.parametrize(("packed", "tie"), [(True, True), (False, True), (True, False)])
def test_sum_and_every_gradient_equal_the_definition(tmp_path, world_of_one, samples, packed, tie):
    """Untied, embedding and LM head are groups of their own for FSDP2."""
    directory = tiny_model_dir(tmp_path, tie=tie)
    reference = AutoModelForCausalLM.from_pretrained(directory)  # unsharded: our gradient scale must be torch's own
    expected = by_definition(reference, samples)
    expected.backward()

    model = load_sharded(directory, packed=packed)
    found = token_ce_sum(model, collate(samples, packed=packed, pad_id=0))[0]
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), theirs[name].grad, rtol=1e-5, atol=1e-5, msg=name)


def test_fractional_weights_against_numbers_by_hand():
    """Two turns of two tokens, weights 0.25 and 2: Σ w·CE / Σ w, with the CE of every token known beforehand."""
    likely = {5: 0.5, 6: 0.25, 7: 0.125, 8: 0.0625}  # probability that the model gives to each trained token

    class Model(torch.nn.Module):
        def forward(self, input_ids, logits_to_keep, **_):
            targets = input_ids.roll(-1)[:, logits_to_keep]
            logits = torch.zeros(*targets.shape, 10)
            for column, target in enumerate(targets[0].tolist()):
                share = likely[target]
                logits[0, column] = torch.tensor((1 - share) / 9).log()
                logits[0, column, target] = torch.tensor(share).log()
            return SimpleNamespace(logits=logits)

    sample = Sample(np.array([3, 3, 5, 6, 3, 7, 8, 4], np.int32), np.array([0, 0, 0.25, 0.25, 0, 2, 2, 0], np.float32))
    batch = collate([sample], packed=True, pad_id=0)
    loss = token_ce_sum(Model(), batch)[0].item() / batch.counts.weight_sum
    assert batch.counts.weight_sum == 4.5
    bits = 0.25 * (1 + 2) + 2 * (3 + 4)  # -log2 of the probabilities
    assert loss == pytest.approx(bits * np.log(2) / 4.5, rel=1e-6)


SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # logits that a soft-cap bends
}
FAMILIES = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "mistral": {},
    "mixtral": {"num_local_experts": 4},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 5.0},
    "gemma3_text": {"final_logit_softcapping": 5.0},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
    "phi": {},  # a bias in the LM head
    "phi3": {},
    "olmo2": {},
    "starcoder2": {},
    "glm4": {},
    "smollm3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    # Body and LM head called by themselves would be wrong here (docs/design.md, "Why the loss is given by hooks").
    "minicpm3": {
        **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
        **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
        "num_key_value_heads": 4,
    },
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
}


def both_ways(model, batch):
    """[(loss, hits, gradients)] of the fused way and of whole logits."""
    results = []
    for form in (learn_logit_form(model), None):
        assert form is not None or results, "the form of this family was not found"
        vars(model)["logit_form"] = form
        model.zero_grad()
        loss = token_ce_sum(model, batch)[0]
        (loss / 7).backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        validation, hits = token_ce_sum_and_hits(model, batch)
        assert validation.item() == pytest.approx(loss.item(), rel=1e-6)
        results.append((loss.item(), hits.item(), gradients))
    return results


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_equals_whole_logits_in_every_family(family, samples, monkeypatch):
    """fp32: 1e-6 for loss and head, 1e-5 of the largest gradient norm for what lies behind many more roundings."""
    monkeypatch.setattr("sft.model.head.CHUNK", {"cpu": 16})
    torch.manual_seed(0)
    config = AutoConfig.for_model(family.split()[0], **SIZES | FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    batch = collate(samples, packed=False, pad_id=0)
    (loss, hits, ours), (expected, expected_hits, theirs) = both_ways(model, batch)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert hits == expected_hits
    assert ours.keys() == theirs.keys()
    scale = max(gradient.norm() for gradient in theirs.values())
    worst = max((ours[name] - theirs[name]).norm() for name in theirs)
    assert worst < 1e-6 * scale, float(worst / scale)

    # bf16: logits differ in their last of 8 bits, where a soft-cap or a scale is no longer rounded itself.
    (loss, _, ours), (expected, _, theirs) = both_ways(model.to(torch.bfloat16), batch)
    assert loss == pytest.approx(expected, rel=1e-2)
    for name in theirs:
        assert (ours[name] - theirs[name]).float().norm() < 0.05 * scale


def test_whole_logits_remain_for_models_that_need_them(tmp_path, world_of_one, samples, monkeypatch):
    """More rows than a chunk, and the same loss as the fused way."""
    model = load_sharded(tiny_model_dir(tmp_path))
    batch = collate(samples, packed=True, pad_id=0)
    fused = token_ce_sum(model, batch)[0].item()
    vars(model)["logit_form"] = None
    monkeypatch.setattr("sft.train.loss.WHOLE_LOGITS_CHUNK", 7)
    assert token_ce_sum(model, batch)[0].item() == pytest.approx(fused, rel=1e-6)


class AnyArgument(LlamaForCausalLM):
    """As xLSTM's: what is not known is taken, and ignored."""

    def forward(self, input_ids, position_ids, use_cache, **ignored):
        ignored.pop("logits_to_keep", None)
        return super().forward(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)


class NoOtherArgument(LlamaForCausalLM):
    """As that of much code that came with a model."""

    def forward(self, input_ids, position_ids, use_cache):
        return super().forward(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)


@pytest.mark.parametrize("kind", [AnyArgument, NoOtherArgument])
def test_a_model_that_answers_with_all_logits_is_asked_for_fewer(samples, kind):
    torch.manual_seed(0)
    model = kind(LlamaConfig(**SIZES)).eval()
    samples = [Sample(samples[1].input_ids % SIZES["vocab_size"], samples[1].loss_weights)]
    expected = by_definition(model, samples).item()
    assert learn_logit_form(model) is None
    batch = collate(samples, packed=False, pad_id=0)
    assert token_ce_sum(model, batch)[0].item() == pytest.approx(expected, rel=1e-6)


def test_nothing_is_as_large_as_all_logits(tmp_path, world_of_one, monkeypatch):
    """In training and in validation; the whole-logits way is seen to make them."""
    monkeypatch.setattr("sft.model.head.CHUNK", {"cpu": 16})
    model = load_sharded(tiny_model_dir(tmp_path))
    tokens, vocabulary = 100, model.config.vocab_size
    ids = (np.arange(tokens) % 400 + 3).astype(np.int32)
    batch = collate([Sample(ids, np.ones(tokens, np.float32))], packed=True, pad_id=0)

    def largest():
        with Watch() as watch:
            token_ce_sum(model, batch)[0].backward()
            token_ce_sum_and_hits(model, batch)
        return watch.largest

    all_logits = (tokens - 1) * vocabulary
    assert largest() < all_logits
    vars(model)["logit_form"] = None
    assert largest() >= all_logits


def test_generation_sees_the_model_as_it_is(tmp_path, world_of_one, samples):
    model = load_sharded(tiny_model_dir(tmp_path))
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    names = list(model.state_dict())
    token_ce_sum(model, collate(samples, packed=True, pad_id=0))[0].backward()
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert list(model.state_dict()) == names
    logits = model(torch.arange(5)[None], position_ids=torch.arange(5)[None], **boundaries(5)).logits
    assert logits.shape == (1, 5, model.config.vocab_size)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_the_sum_of_every_source_is_that_of_its_samples_alone(tmp_path, world_of_one, samples, packed, fused):
    model = load_sharded(tiny_model_dir(tmp_path), packed=packed)
    vars(model)["logit_form"] = model.logit_form if fused else None
    sources = [k % 2 for k in range(len(samples))]
    batch = collate(samples, packed=packed, pad_id=0, sources=sources)
    total, of_sources = token_ce_sum(model, batch, sources=3)
    for number in range(2):
        alone = [sample for sample, source in zip(samples, sources, strict=True) if source == number]
        expected = token_ce_sum(model, collate(alone, packed=packed, pad_id=0))[0].item()
        assert of_sources[number].item() == pytest.approx(expected, rel=1e-5)
    assert of_sources[2] == 0 and not of_sources.requires_grad
    assert of_sources.sum().item() == pytest.approx(total.item(), rel=1e-6)

    share, shares = token_ce_sum(model, batch, weight_sum=8, sources=3)  # a power of two, so that nothing is rounded
    assert share.item() == pytest.approx(total.item() / 8, rel=1e-6)
    assert torch.equal(shares, of_sources / 8)


@pytest.mark.parametrize("sources", [1, 2])
def test_the_loss_of_a_long_batch_is_that_of_fp64(sources):
    tokens = 200_000
    ce = torch.rand(tokens, generator=torch.Generator().manual_seed(1))
    of_token = torch.arange(tokens) % sources
    batch = SimpleNamespace(sources=of_token[None] if sources > 1 else None, supervised_columns=torch.arange(tokens))
    exact = [ce.double()[of_token == source].sum().item() for source in range(sources)]
    assert _by_source(ce, batch, sources).tolist() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_the_validation_of_a_long_batch_is_that_of_fp64(monkeypatch, fused):
    tokens, dice = 200_000, torch.Generator().manual_seed(1)
    logits, labels = torch.randn(tokens, 4, generator=dice), torch.randint(0, 4, (tokens,), generator=dice)
    weights = torch.rand(tokens, generator=dice)
    of_token = F.cross_entropy(logits, labels, reduction="none") * weights
    hits = (logits.argmax(1) == labels).sum()
    monkeypatch.setattr("sft.train.loss._fused", lambda *_: (None, of_token, hits))
    monkeypatch.setattr("sft.train.loss.supervised_logits", lambda *_: (logits, labels, weights))
    model = SimpleNamespace(logit_form=object() if fused else None)
    found, found_hits = token_ce_sum_and_hits(model, None)  # pyright: ignore[reportArgumentType]
    assert found.item() == pytest.approx(of_token.double().sum().item(), rel=1e-12)
    assert found_hits.item() == hits.item() > 0


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_a_batch_without_labels_is_a_zero_that_reaches_every_parameter(tmp_path, world_of_one, fused, tie):
    model = load_sharded(tiny_model_dir(tmp_path, tie=tie))
    vars(model)["logit_form"] = model.logit_form if fused else None
    loss = token_ce_sum(model, collate([], packed=True, pad_id=0))[0]
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.full_tensor().any() for parameter in model.parameters())


def test_hits_count_supervised_tokens_only(tmp_path, world_of_one, samples):
    model = load_sharded(tiny_model_dir(tmp_path), packed=False)
    expected = 0
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        guesses = model(ids[None], position_ids=torch.arange(len(ids))[None], use_cache=False).logits[0].argmax(-1)
        expected += int(((guesses[:-1] == ids[1:]) & torch.from_numpy(sample.loss_weights[1:] > 0)).sum())
    ce_sum, hits = token_ce_sum_and_hits(model, collate(samples, packed=False, pad_id=0))
    assert hits.item() == expected
    assert ce_sum.item() == pytest.approx(by_definition(model, samples).item(), rel=1e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_other_losses_are_the_same_fused_and_from_whole_logits(tmp_path, world_of_one, samples, packed):
    form = LossForm("eaft", label_smoothing=0.1, z_loss=1e-3)
    model = load_sharded(tiny_model_dir(tmp_path), packed=packed)
    batch = collate(samples, packed=packed, pad_id=0)

    def gradients_of():
        total, of_sources = token_ce_sum(model, batch, loss=form)
        total.backward()
        assert of_sources.item() == pytest.approx(total.item(), rel=1e-6)
        found = {name: weight.grad.full_tensor() for name, weight in model.named_parameters()}
        model.zero_grad()
        return total.item(), found

    fused, theirs = gradients_of()
    plain = token_ce_sum(model, batch)[0].item()
    model.logit_form = None
    whole, ours = gradients_of()
    assert fused == pytest.approx(whole, rel=1e-6) and fused != pytest.approx(plain, rel=1e-3)
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradient, ours[name], rtol=1e-4, atol=1e-6, msg=name)
