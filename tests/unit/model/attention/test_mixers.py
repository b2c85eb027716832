"""Hybrids in rows of several samples: the numbers of their samples alone, proven before training, or refused."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, RwkvConfig

from sft.data.order.collate import collate
from sft.errors import InputError
from sft.model.attention import interface, kernels, mixers, prove_separation, separate_samples
from sft.model.load import build_skeleton, decoder_layers
from sft.parallel.activation import checkpoint_activations
from sft.train.loss import token_ce_sum
from tests.assets import attention_on_cpu
from tests.models import alone, samples

sys.path.insert(0, str(Path(__file__).parents[4] / "scripts"))
from sweep_models import config_of

sys.path.pop(0)

pytestmark = pytest.mark.usefixtures("world_of_one")

HYBRIDS = (
    *("qwen3_next", "qwen3_5_text", "lfm2", "granitemoehybrid", "bamba", "falcon_h1", "nemotron_h"),
    *("lfm2_moe", "olmo_hybrid", "jamba", "minimax"),
)
CPU = torch.device("cpu")


def both(family):
    """(the model in transformers' own attention, the same weights on packed rows with separated mixers)."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config_of(family), attn_implementation="eager").float()
    config = config_of(family)
    attention = attention_on_cpu(config, packed=True)
    build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)  # registers the kernel
    ours = AutoModelForCausalLM.from_config(config, attn_implementation=attention.implementation).float()
    ours.load_state_dict(theirs.state_dict())
    return theirs.train(), ours.train()


@pytest.mark.parametrize("family", HYBRIDS)
def test_loss_and_every_gradient_are_those_of_the_samples_alone(family):
    theirs, ours = both(family)
    _, expected = alone(theirs)
    expected.backward()
    separate_samples(ours)
    prove_separation(ours, CPU)
    assert ours.training
    checkpoint_activations(decoder_layers(ours), selective=False)  # backward computes the mixers again
    found = token_ce_sum(ours, collate(samples(), packed=True, pad_id=0))[0]
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    for name, weight in ours.named_parameters():
        if name in gradients:
            scale = gradients[name].abs().max().item()
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-4 * scale + 1e-8, msg=name)


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_moe_text", "granitemoehybrid"])
def test_a_mixer_that_sees_the_sample_before_is_refused(family):
    """One of them, that for some reason is called with the whole row; with experts behind it, too."""
    _, ours = both(family)
    separate_samples(ours)
    mixer = next(module for _, module in mixers._mixers(ours))
    mixer.forward = lambda hidden_states, **_: type(mixer).forward(mixer, hidden_states)
    with pytest.raises(InputError, match=r"a sample changed what the model says .*; set use_remove_padding=false"):
        prove_separation(ours, CPU)


def test_attention_that_looks_across_samples_is_refused():
    """The proof is of the whole model, not of its mixers alone."""
    _, ours = both("qwen3_next")
    separate_samples(ours)
    interface.AttentionInterface.register("test_one_row", interface.attention_function(kernels.sdpa, packed=False))
    ours.set_attn_implementation("test_one_row")
    with pytest.raises(InputError, match="a sample changed what the model says"):
        prove_separation(ours, CPU)


def test_mixers_of_no_known_kind_are_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(RwkvConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64))
    with pytest.raises(InputError, match=r"mix tokens .* of no kind that is known here; set use_remove_padding=false"):
        separate_samples(model)


def test_a_model_of_attention_alone_is_left_alone():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of("qwen3"))
    separate_samples(model)
    assert "row_of_mixers" not in vars(model)
    prove_separation(model, CPU)  # on the meta device: nothing is computed


def test_padded_rows_go_through_the_mixer_as_they_are():
    theirs, ours = both("lfm2")
    separate_samples(ours)
    ours.set_attn_implementation("eager")
    ids = torch.arange(24).view(2, 12)
    torch.testing.assert_close(ours(ids, use_cache=False).logits, theirs(ids, use_cache=False).logits)


def test_kernels_are_told_where_samples_end():
    """On a GPU a mixer is called once, with the boundaries in the words of its kernels."""
    said = {}

    class Mixer(torch.nn.Module):
        def forward(self, hidden_states, attention_mask=None, **kwargs):
            said.update(kwargs)
            return hidden_states

    row = mixers.Row((2, 3), torch.tensor([0, 2, 5], dtype=torch.int32), by_kernel=True)
    x = torch.randn(1, 5, 4)
    assert torch.equal(mixers._sample_by_sample(Mixer().forward, row)(x, position_ids=x, sample_lengths=(2, 3)), x)
    assert said.keys() == {"seq_idx", "cu_seq_lens_q"}
    assert said["seq_idx"].tolist() == [[0, 0, 1, 1, 1]] and said["seq_idx"].dtype == torch.int32
    assert said["cu_seq_lens_q"].tolist() == [0, 2, 5]


def test_kernels_that_are_not_installed_or_do_not_listen_are_given_up(monkeypatch):
    """transformers' stand-ins refuse to be told of samples; other kernels may ignore it."""
    _, ours = both("lfm2")
    separate_samples(ours)
    monkeypatch.setattr(mixers, "_leaks", lambda model, row, _: leaks(row))
    for says in (ValueError("can't keep packed sequences apart"), True):

        def leaks(row, says=says):
            if row.by_kernel and isinstance(says, Exception):
                raise says
            return row.by_kernel and says

        prove_separation(ours, torch.device("cuda"))
        assert not vars(ours)["row_of_mixers"].by_kernel
    monkeypatch.setattr(mixers, "_leaks", lambda *_: False)
    prove_separation(ours, torch.device("cuda"))
    assert vars(ours)["row_of_mixers"].by_kernel
