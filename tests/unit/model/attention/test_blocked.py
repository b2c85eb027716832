"""The blocked kernel against sdpa, in blocks that are smaller than the samples, larger, and of several samples."""

import pytest
import torch

from sft.model.attention import blocked as room
from sft.model.attention import kernels
from sft.model.attention.blocked import blocked
from sft.model.attention.kernels import Samples, Scores
from sft.parallel.activation import stays_with_selective
from tests.assets import boundaries

LONGEST_OF = room._longest  # which other tests replace
LENGTHS = (3, 1, 40, 16, 7, 8, 2, 17, 32, 5)
TOKENS, BLOCK = sum(LENGTHS), 16


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(room, "BLOCK", BLOCK)
    monkeypatch.setattr(room, "_longest", lambda width: 1000)  # of heads of 7, too
    room._spans.cache_clear()
    yield
    room._spans.cache_clear()


def samples(*lengths):
    told = boundaries(*lengths)
    return Samples(told["sample_lengths"], told["cu_seqlens"], told["max_seqlen"])


def tensors(dtype=torch.float32, heads=4, kv_heads=2, width=24, value_width=24, tokens=TOKENS):
    torch.manual_seed(0)
    shapes = ((heads, width), (kv_heads, width), (kv_heads, value_width))
    return [torch.randn(tokens, h, w).to(dtype).requires_grad_() for h, w in shapes]


def results(kernel, inputs, row, scores):
    """Output and gradients."""
    output = kernel(*inputs, row, scores)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return [output, *torch.autograd.grad(output, inputs, direction)]


def exact_results(inputs, row, scores):
    return results(kernels.sdpa, [x.detach().double().requires_grad_() for x in inputs], row, scores)


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


SHAPES = {
    "shared heads": {},
    "own heads": {"kv_heads": 4},
    "one key head": {"kv_heads": 1},
    "narrow values": {"value_width": 10},
    "odd width": {"width": 7, "value_width": 7},
    "wide heads": {"width": 64, "value_width": 64},
}


@pytest.mark.parametrize("window", [None, 2, 6, 30], ids=lambda window: f"window={window}")
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_sdpa_to_the_last_digits_of_fp32(shape, window):
    inputs, row, scores = tensors(**SHAPES[shape]), samples(*LENGTHS), Scores(0.3, window)
    for found, expected in zip(results(blocked, inputs, row, scores), exact_results(inputs, row, scores), strict=True):
        assert error(found, expected) < 1e-6


@pytest.mark.parametrize("window", [None, 6], ids=lambda window: f"window={window}")
@pytest.mark.parametrize("size", [1, 6])
def test_in_bf16_it_is_as_exact_as_bf16(window, size):
    """Scores stay in fp32: those of 6 times larger queries and keys, up to 300, would be wrong by 1 in bf16."""
    inputs = [(x * size).detach().requires_grad_() for x in tensors(torch.bfloat16)]
    row, scores = samples(*LENGTHS), Scores(0.3, window)
    for found, expected in zip(results(blocked, inputs, row, scores), exact_results(inputs, row, scores), strict=True):
        assert found.dtype == torch.bfloat16
        assert error(found, expected) < 3.5e-3


def test_rows_of_one_length_are_samples():
    inputs, row = tensors(tokens=60), Samples(None, boundaries(20, 20, 20)["cu_seqlens"], 20)
    assert error(blocked(*inputs, row, Scores(0.3)), exact_results(inputs, row, Scores(0.3))[0]) < 1e-6


def test_no_sample_changes_a_bit_of_another_one():
    inputs, row = [x.detach() for x in tensors(torch.bfloat16)], samples(*LENGTHS)
    before = blocked(*inputs, row, Scores(0.3))
    begin = sum(LENGTHS[:4])  # of a sample that shares its block with the next one
    for x in inputs:
        x[begin : begin + LENGTHS[4]] += 1
    changed = (blocked(*inputs, row, Scores(0.3)) != before).flatten(1).any(1)
    assert changed[begin : begin + LENGTHS[4]].all() and changed.sum() == LENGTHS[4]


def test_spans_hold_whole_samples_and_blocks_are_full():
    row = (0, *torch.tensor(LENGTHS).cumsum(0).tolist())
    spans = room._spans(row, None)
    assert [span.end - span.begin for span in spans] == [4, 40, 16, 15, 2, 17, 32, 5]
    assert [[block.end - block.begin for block in span.blocks] for span in spans][:3] == [[4], [16, 16, 8], [16]]


def test_narrow_heads_leave_the_caches_sooner():
    assert [LONGEST_OF(width) for width in (8, 32, 64, 128, 256)] == [32, 512, 2048, 4096, 4096]


def test_samples_that_leave_the_caches_go_to_torch_and_the_others_do_not(monkeypatch):
    asked = []
    monkeypatch.setattr(room, "sdpa", lambda q, *rest: asked.append(len(q)) or kernels.sdpa(q, *rest))
    monkeypatch.setattr(room, "_longest", lambda width: width)  # 24 tokens
    inputs, row = tensors(), samples(*LENGTHS)
    found, expected = results(blocked, inputs, row, Scores(0.3)), exact_results(inputs, row, Scores(0.3))
    assert max(map(error, found, expected)) < 1e-6
    assert asked == [40, 32] == [length for length in LENGTHS if length > 24]
    inputs, row = tensors(tokens=75), Samples(None, boundaries(25, 25, 25)["cu_seqlens"], 25)
    assert error(blocked(*inputs, row, Scores(0.3)), exact_results(inputs, row, Scores(0.3))[0]) < 1e-6
    assert asked[2:] == [75]
    blocked(*inputs, row, Scores(0.3, window=24))  # sees no more than a short sample does
    assert asked[2:] == [75]


def test_other_matmuls_stay_exact():
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    results(blocked, tensors(torch.bfloat16), samples(*LENGTHS), Scores(0.3))
    assert matmul.fp32_precision == before


def test_autograd_checkpointing_and_compilation_see_one_operator():
    *inputs, cu_seqlens = *tensors(), samples(*LENGTHS).cu_seqlens
    torch.library.opcheck(torch.ops.sft.blocked_attn, (*inputs, cu_seqlens, 0.3, None))
    assert stays_with_selective(torch.ops.sft.blocked_attn.default)
