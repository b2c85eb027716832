"""Every kernel against the formula; those that need CUDA with a slow function of the same signature in its place.

What is tested of them here is that every argument says the right thing. That the real functions compute it, is
tested in tests/gpu.
"""

import pytest
import torch

from sft.errors import InputError
from sft.model.attention import kernels
from sft.model.attention.flex import flex
from sft.model.attention.kernels import Samples, Scores
from tests.assets import boundaries
from tests.kernels import LENGTHS, by_definition, flash_2, flash_3, varlen_of_torch_2_11, varlen_of_torch_2_13

PLAIN = Scores(scale=0.3)
WINDOW = Scores(scale=0.3, window=4)
CAPPED = Scores(scale=2.0, window=4, softcap=1.5)
SINKS = Scores(scale=2.0, window=4, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0]))


def samples():
    told = boundaries(*LENGTHS)
    return Samples(told["sample_lengths"], told["cu_seqlens"], told["max_seqlen"])


def tensors(heads=4, kv_heads=2, width=8, value_width=8):
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    made = [torch.randn(tokens, h, w) for h, w in ((heads, width), (kv_heads, width), (kv_heads, value_width))]
    return [x.requires_grad_() for x in made]


def assert_same(kernel, scores, inputs, *, backward=True):
    expected = by_definition(*inputs, LENGTHS, scores)
    found = kernel(*inputs, samples(), scores)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    if not backward:
        return
    direction = torch.randn_like(expected)
    leaves = inputs + ([scores.sinks] if scores.sinks is not None and scores.sinks.requires_grad else [])
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, direction), torch.autograd.grad(expected, leaves, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scores", [PLAIN, WINDOW, CAPPED, SINKS], ids=["plain", "window", "capped", "sinks"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_sdpa(scores, kv_heads):
    if scores.sinks is not None:
        scores = Scores(scores.scale, scores.window, sinks=scores.sinks.clone().requires_grad_())
    assert_same(kernels.sdpa, scores, tensors(kv_heads=kv_heads))
    assert_same(kernels.sdpa, scores, tensors(kv_heads=kv_heads, value_width=6))


ADAPTED = {
    "varlen 2.13": kernels.varlen(varlen_of_torch_2_13),
    "varlen 2.11": kernels.varlen(varlen_of_torch_2_11),
    "flash 2": kernels.flash("flash_attention_2", flash_2),
    "flash 3": kernels.flash("flash_attention_3", flash_3),
}


@pytest.mark.parametrize("scores", [PLAIN, WINDOW], ids=["plain", "window"])
@pytest.mark.parametrize("name", ADAPTED)
def test_what_is_said_to_the_cuda_kernels(name, scores):
    for shape in ({}, {"kv_heads": 4}, {"value_width": 6}):
        assert_same(ADAPTED[name], scores, tensors(**shape))


def test_flash_2_caps():
    assert_same(ADAPTED["flash 2"], CAPPED, tensors())


def test_queries_of_another_dtype_are_computed_in_that_of_the_values():
    q, k, v = (x.detach() for x in tensors())
    found = ADAPTED["varlen 2.13"](q.double(), k.double(), v, samples(), PLAIN)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "scores", "said"),
    [
        ("varlen 2.13", CAPPED, "varlen cannot compute the softcap"),
        ("varlen 2.13", SINKS, "varlen cannot compute the sinks"),
        ("varlen 2.13", Scores(1.0, dropout=0.1), "varlen cannot compute the dropout"),
        ("flash 2", SINKS, "flash_attention_2 cannot compute the sinks"),
        ("flash 3", CAPPED, "flash_attention_3 cannot compute the softcap"),
        ("flash 3", Scores(1.0, dropout=0.1), "flash_attention_3 cannot compute the dropout_p"),
    ],
)
def test_what_a_kernel_cannot_do_it_refuses(name, scores, said):
    with pytest.raises(InputError, match=rf"{said} that .*; set model.attn_implementation=sdpa"):
        ADAPTED[name](*tensors(), samples(), scores)


@pytest.mark.parametrize("scores", [PLAIN, WINDOW, CAPPED, SINKS], ids=["plain", "window", "capped", "sinks"])
@pytest.mark.parametrize("heads", [4, 6])
def test_flex_uncompiled(scores, heads, monkeypatch):
    """Forward and backward. On the CPU torch refuses the backward, which the uncompiled function nevertheless has."""
    torch.compiler.reset()  # it traces even here, and only so many variants of one function
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    if scores.sinks is not None:
        scores = Scores(scores.scale, scores.window, sinks=torch.randn(heads).requires_grad_())
    assert_same(flex, scores, tensors(heads=heads))


def test_flex_makes_a_mask_once_for_all_layers(monkeypatch):
    from sft.model.attention import flex as room

    made = []
    make = room.create_block_mask
    monkeypatch.setattr(room, "create_block_mask", lambda *args, **options: made.append(1) or make(*args, **options))
    row, inputs = samples(), [x.detach() for x in tensors()]
    for scores in (PLAIN, WINDOW, PLAIN, WINDOW, CAPPED):
        flex(*inputs, row, scores)
    assert len(made) == 2
    flex(*inputs, samples(), PLAIN)
    assert len(made) == 3
