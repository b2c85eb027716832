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

LENGTHS = (7, 1, 12)
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


def by_definition(q, k, v, lengths, scores):
    """Token by token and head by head, in plain words."""
    rows, start = [], 0
    for length in lengths:
        for token in range(start, start + length):
            first = start if scores.window is None else max(start, token - scores.window + 1)
            heads = []
            for head in range(q.shape[1]):
                group = head // (q.shape[1] // k.shape[1])
                logits = k[first : token + 1, group] @ q[token, head] * scores.scale
                if scores.softcap is not None:
                    logits = scores.softcap * torch.tanh(logits / scores.softcap)
                total = logits.exp().sum() + (0 if scores.sinks is None else scores.sinks[head].exp())
                heads.append((logits.exp() / total) @ v[first : token + 1, group])
            rows.append(torch.stack(heads))
        start += length
    return torch.stack(rows)


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


def slow_attention(q, k, v, cu_seqlens, scale, window, causal, softcap=None):
    """The contract of flash attention: windows count tokens beside the own one, -1 is all, causal cuts the right."""
    left, right = window
    assert cu_seqlens.dtype == torch.int32 and (right == 0 or causal)
    assert q.dtype == k.dtype == v.dtype and q.shape[2] == k.shape[2] == v.shape[2]
    lengths = cu_seqlens.diff().tolist()
    return by_definition(q, k, v, lengths, Scores(scale, None if left == -1 else left + 1, softcap))


def varlen_of_torch_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert cu_seq_q is cu_seq_k and max_q == max_k == max(LENGTHS)
    assert enable_gqa or query.shape[1] == key.shape[1]
    return slow_attention(query, key, value, cu_seq_q, scale, window_size, causal=False)


def varlen_of_torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return varlen_of_torch_2_13(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
    )


def flash_2(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
):
    assert cu_seqlens_q is cu_seqlens_k and max_seqlen_q == max_seqlen_k == max(LENGTHS)
    return slow_attention(q, k, v, cu_seqlens_q, softmax_scale, window_size, causal, softcap or None)


def flash_3(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
):  # without dropout and, in some versions, soft-capping; returns the log-sum-exp as well
    given = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return flash_2(q, k, v, *given, softmax_scale=softmax_scale, causal=causal, window_size=window_size), None


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
