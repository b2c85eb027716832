"""On a CUDA device: every kernel that is there against the formula, forward and backward: `pytest tests/gpu`."""

import pytest
import torch

from sft.model.attention import Available, kernels
from sft.model.attention.interface import load_kernel
from sft.model.attention.kernels import Samples, Scores

LENGTHS = (700, 1, 129, 1024, 3)
ASKED = {
    "plain": {},
    "window": {"window": 100},
    "capped": {"softcap": 3.0},
    "sinks": {"sinks": True, "window": 100},
}
LEFT_OUT = {
    "varlen": {"capped", "sinks"},
    "flash_attention_2": {"sinks"},
    "flash_attention_3": {"sinks"},
    "flex": set(),
    "sdpa": set(),
}


def needed(kernel):
    """Skips, with the reason, where the kernel is not installed."""
    here = Available.on(torch.device("cuda"))
    there = {
        "flash_attention_2": not here.flash_attn,
        "flash_attention_3": not here.flash_attn_interface and here.capability[0] == 9,
        "flex": not here.triton,
    }
    if not there.get(kernel, True):
        pytest.skip(f"{kernel} is not available here")


@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (6, 3)], ids=["all heads", "shared heads", "six heads"])
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("kernel", LEFT_OUT)
def test_forward_and_backward_equal_the_formula(kernel, asked, heads):
    """bf16 against fp32 of the same inputs: within 2 % of the largest value, what 8 bits of mantissa leave."""
    needed(kernel)
    if asked in LEFT_OUT[kernel]:
        pytest.skip(f"{kernel} refuses {asked}; see tests/unit/model/attention")
    if kernel == "flex" and (heads == (8, 8) or (heads == (6, 3) and asked != "plain")):
        pytest.skip("compiled for ten seconds each: shared heads stand for the others")
    torch.manual_seed(0)
    tokens, (query_heads, kv_heads) = sum(LENGTHS), heads
    options = dict(ASKED[asked])
    leaves = [
        torch.randn(tokens, h, 64, device="cuda", dtype=torch.bfloat16) for h in (query_heads, kv_heads, kv_heads)
    ]
    if options.pop("sinks", False):
        leaves.append(torch.randn(query_heads, device="cuda"))
    direction = torch.randn(tokens, query_heads, 64, device="cuda")
    ends = torch.tensor([0, *LENGTHS], device="cuda").cumsum(0).to(torch.int32)
    samples = Samples(LENGTHS, ends, max(LENGTHS))

    def computed(attend, dtype):
        q, k, v, *sinks = inputs = [
            x.detach().to(dtype if x.ndim == 3 else torch.float32).requires_grad_() for x in leaves
        ]
        output = attend(q, k, v, samples, Scores(0.5, **options, sinks=sinks[0] if sinks else None))
        return output.float(), *torch.autograd.grad((output.float() * direction).sum(), inputs)

    def formula(q, k, v, samples, scores):
        parts = zip(*(x.transpose(0, 1)[None].split(samples.lengths, dim=2) for x in (q, k, v)), strict=True)
        return torch.cat([kernels._by_the_formula(*part, scores)[0].transpose(0, 1) for part in parts])

    for found, expected in zip(
        computed(load_kernel(kernel), torch.bfloat16), computed(formula, torch.float32), strict=True
    ):
        largest = expected.abs().max().item()
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02 * largest)


def test_varlen_does_not_wait_for_the_device():
    """A wait in a layer would be one in every layer of every micro-batch."""
    q = torch.randn(64, 4, 64, device="cuda", dtype=torch.bfloat16)
    samples = Samples((40, 24), torch.tensor([0, 40, 64], dtype=torch.int32, device="cuda"), 40)
    attend = load_kernel("varlen")
    attend(q, q, q, samples, Scores(0.5))
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(q, q, q, samples, Scores(0.5))
    finally:
        torch.cuda.set_sync_debug_mode("default")
