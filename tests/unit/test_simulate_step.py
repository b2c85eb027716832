"""Steps on a device that is not there: memory against its estimate, and what makes the host wait."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"
WITHIN = 0.15
FSDP = "model.fsdp_config"
SELECTIVE = "model.gradient_checkpointing_kind=selective"


@pytest.fixture(scope="module")
def script():
    """scripts/simulate_step.py"""
    sys.path.insert(0, str(SCRIPTS))
    import simulate_step

    yield simulate_step
    sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-8B, LoRA", "Qwen3-8B"])
def test_the_estimate_is_within_15_percent_and_the_host_waits_once(script, name, tmp_path):
    step = script.simulate(script.CASES[name], tmp_path)
    assert step.estimated.total == pytest.approx(step.peak_bytes, rel=WITHIN), str(step.estimated)
    assert step.host_reads == 1


KNOBS = {
    "nothing recomputed": (),
    "full": ("model.enable_gradient_checkpointing=true",),
    "selective": ("model.enable_gradient_checkpointing=true", SELECTIVE),
    "weights stay whole": (f"{FSDP}.reshard_after_forward=false",),
    "two copies": (f"{FSDP}.dp_replicate=2",),
    "no master weights": (f"{FSDP}.model_dtype=bf16",),
    "rows shared by two ranks": ("ulysses_sequence_parallel_size=2",),
    "frozen ends": ("model.frozen=[embed_tokens,lm_head]",),
    "adapters": ("model.lora_rank=16", "model.enable_gradient_checkpointing=true"),
    "sgd": ("optim.name=sgd",),
    "logits in fp32": ("model.loss_kernel=torch_fp32",),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_is_in_the_estimate(script, knob, tmp_path):
    """Three layers of 8B's widths on 8 ranks."""
    step = script.simulate(small(script, overrides=KNOBS[knob]), tmp_path)
    assert step.estimated.total == pytest.approx(step.peak_bytes, rel=WITHIN), str(step.estimated)
    assert step.host_reads == (2 if knob == "sgd" else 1), "AdamW clips and skips on the device, others ask the host"


@pytest.mark.parametrize("when", ["once", "every_micro_batch"])
def test_gradients_of_earlier_micro_batches_are_in_the_estimate(script, when, tmp_path):
    case = small(script, overrides=(f"{FSDP}.reduce_gradients={when}",), micro_batches=3)
    step = script.simulate(case, tmp_path)
    assert step.estimated.total == pytest.approx(step.peak_bytes, rel=WITHIN), str(step.estimated)
    sums = 1 if when == "once" else 3
    assert step.collectives[script.SUMMED] == sums * script.simulate(small(script), tmp_path).collectives[script.SUMMED]


@pytest.mark.parametrize(
    "kind",
    [
        {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "sliding_window": 512},
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
        {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4},
    ],
    ids=lambda kind: kind["model_type"],
)
@pytest.mark.parametrize("ranks", [1, 4])
def test_other_families_have_no_formula_of_their_own(script, kind, ranks, tmp_path):
    case = small(script, ranks=ranks)
    architecture = case.architecture | kind
    step = script.simulate(replace(case, architecture=architecture), tmp_path)
    assert step.estimated.total == pytest.approx(step.peak_bytes, rel=WITHIN), str(step.estimated)
    assert step.host_reads == 1


def small(script, **changes):
    case = script.Case(script.QWEN3_8B | {"num_hidden_layers": 3}, ranks=8, tokens=4096)
    return replace(case, **changes)


def test_what_is_counted(script):
    """By hand: memory that is freed, memory that is resized, a collective, and values that the host asks for."""
    from simulated_device import DEVICE, SimulatedDevice, simulated_ranks

    kb = 1024
    module = torch.nn.Linear(kb, 1, bias=False, device=DEVICE)
    with simulated_ranks(4), SimulatedDevice(module) as device:
        assert device.bytes == 4 * kb
        part, whole = torch.empty(kb, device=DEVICE), torch.empty(4 * kb, device=DEVICE)
        torch.distributed.all_gather_into_tensor(whole, part)
        assert device.bytes == (4 + 4 + 16) * kb
        whole.untyped_storage().resize_(0)
        assert device.bytes == (4 + 4) * kb
        part.view(2, -1)  # the same memory
        assert device.bytes == (4 + 4) * kb and device.peak_bytes == (4 + 4 + 16) * kb
        assert device.collectives == {script.GATHERED: 1} and device.collective_bytes[script.GATHERED] == 16 * kb
        assert not device.host_reads
        assert part.sum().item() == 1.0 and part[:2].tolist() == [1.0, 1.0]
        assert len(device.host_reads) == 2
        device.restart_counts()
        assert device.peak_bytes == 2 * 4 * kb and not device.collectives
        del part
        assert device.bytes == 4 * kb
    assert torch.UntypedStorage.resize_.__name__ == "resize_", "torch is as it was"


def test_the_page_has_the_table_of_all_cases(script):
    _, begins, rest = script.PAGE.read_text().partition(script.BEGIN)
    table, ends, _ = rest.partition(script.END)
    assert begins and ends
    assert all(f"| {name}" in table for name in script.CASES)
