"""Every kernel against the formula; those that need CUDA with a slow function of the same signature in its place.

What is tested of them here is that every argument says the right thing. That the real functions compute it, is
tested in tests/gpu.
"""

from types import SimpleNamespace

import pytest
import torch

from sft.errors import InputError
from sft.model.attention import kernels
from sft.model.attention.blocked import blocked
from sft.model.attention.flex import flex
from sft.model.attention.kernels import Samples, Scores
from tests.assets import boundaries
from tests.flash_on_cpu import flash_attention_on_cpu
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
        ("blocked", CAPPED, "blocked cannot compute the softcap"),
        ("blocked", SINKS, "blocked cannot compute the sinks"),
        ("blocked", Scores(1.0, dropout=0.1), "blocked cannot compute the dropout"),
    ],
)
def test_what_a_kernel_cannot_do_it_refuses(name, scores, said):
    with pytest.raises(InputError, match=rf"{said} that .*; set model.attn_implementation=sdpa"):
        (ADAPTED | {"blocked": blocked})[name](*tensors(), samples(), scores)


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


@pytest.mark.parametrize("scores", [PLAIN, WINDOW], ids=["plain", "window"])
@pytest.mark.parametrize(("width", "value_width"), [(8, 8), (16, 8), (12, 12), (20, 10), (6, 8)])
def test_the_real_varlen_takes_heads_of_any_width(width, value_width, scores):
    """torch's own function with its checks, its autograd and, under it, kernels for the CPU; bf16's tolerance."""
    from torch.nn.attention.varlen import varlen_attn

    inputs = tensors(width=width, value_width=value_width)
    halves = [x.detach().bfloat16().requires_grad_() for x in inputs]
    leaves = [x.float().detach().requires_grad_() for x in halves]
    expected = by_definition(*leaves, LENGTHS, scores)
    with flash_attention_on_cpu():
        found = kernels.varlen(varlen_attn)(*halves, samples(), scores)
        direction = torch.randn_like(expected)
        gradients = torch.autograd.grad(found, halves, direction.bfloat16())
    assert found.shape == expected.shape and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, leaves, direction), strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=5e-2, atol=5e-2)


def test_shared_heads_are_repeated_where_cuda_would_go_by_the_formula(monkeypatch):
    asked = []
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        kernels.F,
        "scaled_dot_product_attention",
        lambda q, k, v, **o: asked.append((k.shape[1], o)) or attend(q, k, v, **o),
    )
    monkeypatch.setattr(kernels, "_shares_heads_well", lambda q, *, masked: not masked)
    assert_same(kernels.sdpa, PLAIN, tensors(kv_heads=2))
    assert {(heads, options["enable_gqa"]) for heads, options in asked} == {(2, True)}
    asked.clear()
    assert_same(kernels.sdpa, WINDOW, tensors(kv_heads=2))
    long = [(heads, options["enable_gqa"]) for heads, options in asked if options["attn_mask"] is not None]
    assert long and set(long) == {(4, False)}


@pytest.mark.parametrize(
    ("dtype", "masked", "well"),
    [
        (torch.bfloat16, False, True),
        (torch.float16, False, True),
        (torch.bfloat16, True, False),
        (torch.float32, False, False),
    ],
)
def test_cuda_shares_heads_only_within_flash_attention(dtype, masked, well):
    on_cuda = SimpleNamespace(is_cuda=True, dtype=dtype)
    assert kernels._shares_heads_well(on_cuda, masked=masked) is well  # pyright: ignore[reportArgumentType]
    assert kernels._shares_heads_well(torch.zeros(1), masked=True)


def test_on_cuda_flex_and_its_masks_are_compiled_with_room_for_every_variant(monkeypatch):
    """torch's own limit of 8 is below what a model with a window needs; beyond it, training would end or crawl."""
    from sft.model.attention import flex as room

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled.append((function, how)) or function)
    room._compiled.cache_clear()
    try:
        with torch._dynamo.config.patch(recompile_limit=8):
            attend, make_mask = room._attend(True), room._make_mask(True)
            assert torch._dynamo.config.recompile_limit >= room.VARIANTS
    finally:
        room._compiled.cache_clear()
    assert compiled == [(attend, {"fullgraph": True}), (make_mask, {"fullgraph": True})]


def test_flex_compiles_few_variants_and_never_falls_back(monkeypatch):
    """Rows of many lengths, with and without gradients and windows: fewer variants than the limit, by torch's count.

    Traced as on a GPU, with the function itself behind it (backend eager). Beyond the limit it raises: the whole
    matrix of scores would be computed instead.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit
    from torch._dynamo.utils import counters

    from sft.model.attention import flex as room

    torch.compiler.reset()
    counters.clear()
    traced, lengths = torch.compile(room.flex_attention, backend="eager", fullgraph=True), []
    monkeypatch.setattr(
        room, "_attend", lambda compiled: lambda q, *a, **o: lengths.append(q.shape[2]) or traced(q, *a, **o)
    )

    def attend(tokens, several, grad):
        ends = torch.tensor([0, *([tokens // 3] if several else []), tokens], dtype=torch.int32)
        with torch.set_grad_enabled(grad):
            for window in (None, 16):
                q, k, v = (torch.randn(tokens, heads, 16) for heads in (4, 2, 2))
                flex(q, k, v, Samples((), ends, tokens), Scores(0.25, window=window))

    rows = [
        (512, True, True), (500, True, True), (640, True, True), (317, True, True), (400, True, False),
        (90, True, False), (100, True, True), (384, False, True), (333, False, False), (1, False, True),
        (777, True, True),
    ]  # fmt: skip
    with torch._dynamo.config.patch(recompile_limit=room.VARIANTS):
        for row in rows:
            attend(*row)
    assert counters["stats"]["unique_graphs"] <= room.VARIANTS // 4
    assert lengths and not any(length % room.BLOCK for length in lengths), "a last block in part is a variant for CUDA"
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(FailOnRecompileLimitHit):
        for tokens in (512, 640, 90):
            attend(tokens, True, True)
    torch.compiler.reset()
