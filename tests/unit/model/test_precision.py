"""What an architecture keeps in fp32 stays so, whatever the rest computes in."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING

from sft.model.load import build_skeleton, load_weights
from sft.model.precision import fp32_modules, say_what_is_rounded
from sft.parallel.fsdp import Sharding, shard
from sft.parallel.mesh import build_mesh
from sft.parallel.world import log
from tests.assets import attention_on_cpu

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))
from sweep_models import config_of, write_model

sys.path.pop(0)


def skeleton(kind, dtype):
    config = config_of(kind)
    return build_skeleton(
        config, attention=attention_on_cpu(config, packed=False), dtype=dtype, trust_remote_code=False
    )


def test_correction_biases_are_not_rounded():
    """A buffer of DeepSeek's router: trained in bf16 or frozen under LoRA, it was written as rounded."""
    model = skeleton("deepseek_v3", torch.bfloat16)
    dtypes = {name.rpartition(".")[2]: buffer.dtype for name, buffer in model.named_buffers() if "gate" in name}
    assert dtypes == {"e_score_correction_bias": torch.float32}
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("world_of_one")
def test_routers_compute_in_fp32_and_the_rest_in_bf16(master, tmp_path):
    """Where the files hold both, FSDP2 said that it expects a uniform dtype."""
    model = skeleton("ernie4_5_moe", master)
    routers = fp32_modules(model)
    assert len(routers) == 1 and all(w.dtype == torch.float32 for r in routers for w in r.parameters())
    layers = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    shard(model, layers, build_mesh(1, "cpu").fsdp, Sharding(torch.bfloat16), in_fp32=routers)
    write_model("ernie4_5_moe", tmp_path)
    load_weights(model, tmp_path, torch.device("cpu"))
    seen = []
    for router in routers:
        router.register_forward_hook(lambda module, *_: seen.extend(w.dtype for w in module.parameters()))
    logits = model(torch.arange(8)[None], use_cache=False).logits
    logits.float().pow(2).mean().backward()
    assert set(seen) == {torch.float32} and logits.dtype == torch.bfloat16
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.skipif("bailing_hybrid" not in CONFIG_MAPPING, reason="this transformers does not know bailing_hybrid")
def test_a_convolution_that_is_read_raw_is_no_group_of_its_own(caplog):
    """Its forward is never called, so FSDP2 would never gather it: bailing_hybrid failed in its first forward."""
    model = skeleton("bailing_hybrid", torch.bfloat16)
    layers = dict(model.named_modules())
    assert any(name.endswith("conv1d") for name in layers)
    assert not [module for module in fp32_modules(model) if isinstance(module, torch.nn.Conv1d)]
    with caplog.at_level("INFO"):
        log.addHandler(caplog.handler)
        say_what_is_rounded(model, torch.float32)
        assert not caplog.messages
        say_what_is_rounded(model, torch.bfloat16)
        log.removeHandler(caplog.handler)
    (said,) = set(caplog.messages)  # twice where the log hands on what it is told
    assert "in torch.bfloat16: conv1d.weight, forget_gate.A_log, forget_gate.dt_bias" in said


def test_an_lm_head_is_no_group_of_its_own():
    """The loss reads its weight: hy_v4, which keeps it in fp32, failed in its first step."""
    model = skeleton("hy_v4", torch.bfloat16)
    assert model.get_output_embeddings() not in fp32_modules(model)
