"""Each optimizer of our own equals the one of a library that takes no DTensors, over several steps."""

import pytest
import torch

from sft.train.optim import OPTIMIZERS, in_blocks
from tests.optimizers import optim

SHAPES = {"matrix": (6, 512), "narrow": (300, 16), "experts": (3, 4, 8), "vector": (7,)}


class Weights(torch.nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        for name, shape in SHAPES.items():
            numbers = torch.randn(shape, generator=torch.Generator().manual_seed(len(name))).to(dtype)
            self.register_parameter(name, torch.nn.Parameter(numbers))


def trained(make, steps=5, dtype=torch.float32):
    model = Weights(dtype)
    optimizer = make(model)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator).to(dtype) * 0.1
        optimizer.step()
    return dict(model.named_parameters()), optimizer


def ours(name, **settings):
    return lambda model: OPTIMIZERS[name].build(model, optim(name=name, lr=0.03, weight_decay=0.1, **settings))


def groups(model):
    """Matrices decay, vectors do not, as ours."""
    return [
        {"params": [weight for weight in model.parameters() if (weight.ndim < 2) is is_vector], "weight_decay": decay}
        for is_vector, decay in ((False, 0.1), (True, 0.0))
    ]


def test_adafactor_is_torchs():
    found, _ = trained(ours("adafactor"))
    expected, _ = trained(lambda model: torch.optim.Adafactor(groups(model), lr=0.03, eps=(2**-23, 1e-3)))
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


def test_lion_and_adamw_8bit_are_those_of_bitsandbytes():
    """Its AdamW keeps 8 bits where a weight has 512 numbers, and ours where a row is of whole blocks."""
    bnb = pytest.importorskip("bitsandbytes")
    found, _ = trained(ours("lion"))
    expected, _ = trained(lambda model: bnb.optim.Lion(groups(model), lr=0.03, betas=(0.9, 0.95)))
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)

    found, optimizer = trained(ours("adamw_8bit"))
    eight = {"lr": 0.03, "betas": (0.9, 0.95), "min_8bit_size": 512}
    expected, _ = trained(lambda model: bnb.optim.AdamW8bit(groups(model), **eight))
    plain, _ = trained(ours("adamw"))
    assert torch.equal(found["matrix"], expected["matrix"])
    assert not torch.equal(found["matrix"], plain["matrix"])
    torch.testing.assert_close(found["matrix"], plain["matrix"], rtol=0, atol=0.02)
    assert torch.equal(found["narrow"], plain["narrow"]), "rows of no whole block keep their moments in fp32"
    state = optimizer.state[found["matrix"]]
    kept = sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
    assert kept == found["matrix"].numel() * OPTIMIZERS["adamw_8bit"].state_bytes(4)


@pytest.mark.parametrize("name", ["lion", "adafactor", "adamw_8bit"])
def test_weights_in_bf16_stay_near_those_in_fp32(name):
    """Each of five steps of up to 0.03 is rounded to 8 bits of mantissa."""
    pytest.importorskip("bitsandbytes")
    (rounded, _), (exact, _) = trained(ours(name), dtype=torch.bfloat16), trained(ours(name))
    for key, weight in rounded.items():
        assert weight.dtype == torch.bfloat16
        assert (weight - exact[key]).abs().mean() < 0.01, key


def test_embeddings_keep_moments_of_32_bits():
    model = torch.nn.Sequential(torch.nn.Embedding(4, 256), torch.nn.Linear(256, 3), torch.nn.Linear(100, 2))
    assert in_blocks(model) == {"1.weight"}
