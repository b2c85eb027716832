"""On a CUDA device: the fused loss against whole logits, with the vocabulary of Qwen, over more than one chunk."""

import pytest
import torch
import torch.nn.functional as F

from sft.model.head import CHUNK, linear_ce_sum
from sft.model.loss_form import LOSS_KERNELS, LogitForm
from sft.types import IGNORE_INDEX

ROWS, WIDTH, VOCABULARY = CHUNK["gpu"] + 500, 128, 151_936


@pytest.mark.parametrize("kernel", ["torch", "torch_fp32", "triton", "triton_fp32"])
@pytest.mark.parametrize("form", [LogitForm(), LogitForm(scale=0.5, cap=5.0)], ids=["plain", "capped"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=["fp32", "bf16"])
def test_loss_and_gradients_equal_those_of_whole_logits(dtype, tolerance, form, kernel):
    """Within 1e-5 of the largest gradient in fp32; 2 % in bf16, which rounds the logits. The loss: a tenth of that."""
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, device="cuda").to(dtype)
    weight = (torch.randn(VOCABULARY, WIDTH, device="cuda") * 0.1).to(dtype)
    labels = torch.randint(VOCABULARY, (ROWS,), device="cuda")
    labels[::7] = IGNORE_INDEX
    weights = torch.rand(ROWS, device="cuda")

    def whole(hidden, weight):
        logits = form.scale * (hidden.float() @ weight.float().T)
        logits = logits if form.cap is None else form.cap * torch.tanh(logits / form.cap)
        return (F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none") * weights).sum()

    def fused(hidden, weight):
        return linear_ce_sum(hidden, weight, None, labels, weights, form, kernel=LOSS_KERNELS[kernel])[0]

    results = []
    for compute in (fused, whole):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        loss = compute(*leaves)
        results.append((loss.item(), *torch.autograd.grad(loss, leaves)))
        torch.cuda.empty_cache()
    (found, *gradients), (expected, *others) = results
    assert found == pytest.approx(expected, rel=tolerance / 10)
    for ours, theirs in zip(gradients, others, strict=True):
        largest = theirs.float().abs().max().item()
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance * largest)
