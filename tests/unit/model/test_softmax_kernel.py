"""The Triton kernel of the loss against the arithmetic by torch, in Triton's interpreter (tests/conftest.py)."""

import subprocess
import sys

import pytest
import torch

from sft.model import head
from sft.model.head import linear_ce_sum
from sft.model.loss_form import BY_TORCH, LOSS_KERNELS, LogitForm, LossForm, LossKernel
from tests.launch import REPOSITORY, clean_environment

pytest.importorskip("triton", reason="triton comes with torch for CUDA, and by pip install triton")

from sft.model import softmax_kernel

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="there, tests/gpu/test_head.py runs the kernel itself"
)
TRITON = LOSS_KERNELS["triton"]
FORMS = {"plain": LogitForm(), "scaled": LogitForm(0.25), "capped": LogitForm(0.7, 8.0)}
LOSSES = {
    "ce": LossForm(),
    "dft": LossForm("dft"),
    "smoothed": LossForm(label_smoothing=0.1),
    "z-loss": LossForm(z_loss=1e-2),
    "all": LossForm("dft", label_smoothing=0.2, z_loss=1e-3),
}
ROWS, VOCABULARY = 9, 70


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """70 = 4 x 16 + 6 logits; 9 = 4 + 4 + 1 rows."""
    monkeypatch.setattr(softmax_kernel, "BLOCK", 16)
    monkeypatch.setattr(head, "CHUNK", {"cpu": 4})


def logits(dtype=torch.float32):
    """(x [n, V], labels with a gap, weights)"""
    generator = torch.Generator().manual_seed(0)
    x = 4 * torch.randn(ROWS, VOCABULARY, generator=generator)
    labels = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    labels[3], labels[5] = -100, x[5].argmax()
    return x.to(dtype), labels, torch.rand(ROWS, generator=generator).where(labels >= 0, 0.0)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_kernel_computes_what_torch_does(loss, form):
    x, labels, weights = logits()
    z, d_x = x.clone(), torch.empty_like(x)
    expected, hits = head._softmax_and_gradient(z, labels, weights, form, loss, with_gradient=True)
    found, found_hits = softmax_kernel.softmax_and_gradient(x, labels, weights, form, loss, gradient=d_x)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(d_x, z, rtol=1e-5, atol=1e-6)
    assert found_hits == hits >= 1


def test_the_gradient_may_take_the_place_of_the_logits_and_be_of_16_bits():
    x, labels, weights = logits(torch.bfloat16)
    kept, exact = x.clone(), torch.empty(x.shape)
    args = (labels, weights, LogitForm(0.5, 8.0), LossForm())
    losses, _ = softmax_kernel.softmax_and_gradient(kept, *args, gradient=exact)
    in_place, _ = softmax_kernel.softmax_and_gradient(x, *args, gradient=x)
    assert torch.equal(losses, in_place)
    torch.testing.assert_close(x.float(), exact, rtol=2**-7, atol=0)  # the interpreter cuts the digits off
    assert torch.equal(losses, softmax_kernel.softmax_and_gradient(kept, *args, gradient=None)[0])


def test_what_is_not_finite_stays_so_and_what_is_impossible_counts_for_nothing():
    x, labels, weights = logits()
    x[0, 40], x[1, 3] = torch.nan, torch.inf
    x[2, :32] = -torch.inf  # whole blocks
    labels[2] = 50
    z, d_x = x.clone(), torch.empty_like(x)
    expected, _ = head._softmax_and_gradient(z, labels, weights, LogitForm(), LossForm(), with_gradient=True)
    found, _ = softmax_kernel.softmax_and_gradient(x, labels, weights, LogitForm(), LossForm(), gradient=d_x)
    assert found[:2].isnan().all() and d_x[:2].isnan().any(dim=1).all()
    torch.testing.assert_close(found[2:], expected[2:], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(d_x[2:], z[2:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_and_gradients_of_a_head_are_those_of_torch(dtype):
    """Over several chunks, with a bias and a frozen weight beside."""
    generator = torch.Generator().manual_seed(1)
    shapes = (ROWS, 8), (VOCABULARY, 8), (VOCABULARY,)
    tensors = [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    _, labels, weights = logits()

    def of(kernel: LossKernel):
        total, rows, hits = linear_ce_sum(*tensors, labels, weights, LogitForm(), LossForm(), kernel)
        return [total, rows, hits, *torch.autograd.grad(total, tensors)]

    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for ours, theirs in zip(of(TRITON), of(BY_TORCH), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)


def test_it_compiles_for_cuda(tmp_path):
    """To a cubin of Hopper, by the compiler that comes with triton; no GPU is asked. The interpreter takes more."""
    program = (
        "import triton, sft.model.softmax_kernel as room\n"
        "from triton.backends.compiler import GPUTarget\n"
        "pointers = dict(x='*bf16', gradient='*bf16', labels='*i64', weights='*fp32', losses='*fp32', hits='*fp32')\n"
        "given = dict(vocabulary=151936, scale=1.0, z_loss=0.0, with_gradient=True, block=room.BLOCK)\n"
        "for others in (dict(cap=None, smoothing=0.0, is_dft=False), dict(cap=30.0, smoothing=0.1, is_dft=True)):\n"
        "    constants = given | others\n"
        "    types = pointers | dict.fromkeys(constants, 'constexpr')\n"
        "    source = triton.compiler.ASTSource(room._of_a_row, types, constants)\n"
        "    options = {'num_warps': room.WARPS}\n"
        "    print(len(triton.compile(source, GPUTarget('cuda', 90, 32), options).asm['cubin']))\n"
    )
    environment = clean_environment() | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(int(size) > 10_000 for size in done.stdout.split()) and len(done.stdout.split()) == 2
