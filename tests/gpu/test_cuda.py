"""On a CUDA device: the same losses as on the CPU, whatever the knobs. `python -m pytest tests/gpu`"""

import pytest
import torch

from sft import fsdp_sft_trainer as trainer
from sft import load_config
from sft.model.attention import Available
from sft.parallel.host_memory import HostMemory
from sft.parallel.shards import local_part
from sft.parallel.world import World, process_group
from sft.train.loss import token_ce_sum
from tests.assets import tiny_model_dir

FSDP = "model.fsdp_config"
FP32 = f"{FSDP}.compute_dtype=fp32"
PACKED, PADDED = "use_remove_padding=true", "use_remove_padding=false"
AGAIN = "model.enable_gradient_checkpointing=true"


def built(base, tmp_path, *more):
    """(the configuration, a world of one, what it reads)"""
    config = load_config([*base, *more, f"trainer.default_local_dir={tmp_path / 'run'}"])
    world = World.from_environment()
    return config, world, trainer.read_inputs(config, world)


@pytest.mark.parametrize("offload", [True, False])
def test_offloaded_weights_and_moments_live_in_cpu_memory(base, tmp_path, offload):
    config, world, inputs = built(base, tmp_path, f"{FSDP}.cpu_offload={offload}")
    with process_group(world):
        job = trainer.build(config, world, inputs)
        stats = trainer.train_step(job, *next(trainer.parts_from(job, 1)))
        states = [*job.model.parameters(), *(state["exp_avg"] for state in job.optimizer.state.values())]
        assert {local_part(state).device.type for state in states} == {"cpu" if offload else "cuda"}
        assert {buffer.device.type for buffer in job.model.buffers()} == {"cuda"}
        assert stats.grad_norm > 0 and not stats.skipped
        del job, states


def test_checkpoints_are_copied_into_page_locked_memory_and_again_into_the_same():
    memory, weights = HostMemory(), [torch.randn(4096, 4096, device="cuda") for _ in range(4)]
    tensors = {str(k): weight.t() if k % 2 else weight for k, weight in enumerate(weights)}
    before = None
    for _ in range(2):
        expected = {name: tensor.cpu() for name, tensor in tensors.items()}
        copies = memory.copy(tensors)
        for weight in weights:
            weight.add_(1)  # the next step must not reach the copies
        torch.cuda.synchronize()
        assert all(torch.equal(copies[name], expected[name]) and copies[name].is_pinned() for name in tensors)
        addresses = [copy.data_ptr() for copy in copies.values()]
        assert before in (None, addresses)
        before = addresses


@pytest.mark.parametrize("layout", [PACKED, PADDED])
def test_micro_batches_do_not_wait_for_the_device(base, tmp_path, layout):
    """tests/unit/test_waits.py without a GPU; here torch itself raises where the host would wait."""
    config, world, inputs = built(base, tmp_path, layout)
    with process_group(world):
        job = trainer.build(config, world, inputs)
        micro_batches, _ = next(trainer.parts_from(job, 1))
        for mode in ("default", "error"):  # what is made once, in the first step, may wait
            torch.cuda.set_sync_debug_mode(mode)
            try:
                for batch in micro_batches:
                    token_ce_sum(job.model, batch.to(world.device))[0].backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        del job


@pytest.fixture(scope="module")
def on_cpu(run_in_turn):
    """Losses of four steps in fp32: no knob changes them."""
    return run_in_turn([("cpu", [FP32, PACKED])], device="")[0][0]


@pytest.mark.parametrize(
    "options",
    [
        [PACKED],
        [PADDED],
        [PADDED, "model.attn_implementation=sdpa"],
        [PACKED, "model.attn_implementation=flex"],
        [PACKED, f"{FSDP}.cpu_offload=true"],
        [PACKED, f"{FSDP}.reshard_after_forward=false", f"{FSDP}.reduce_gradients=once"],
        [PACKED, AGAIN, "model.gradient_checkpointing_kind=selective"],
        [PADDED, AGAIN, "model.gradient_checkpointing_kind=full"],
        [PACKED, "trainer.async_save=false"],
    ],
    ids=lambda options: " ".join(option.rpartition(".")[2] for option in options),
)
def test_four_steps_equal_the_cpu_and_resume(run_in_turn, on_cpu, options):
    """fp32; 1e-3 is what matmuls without TF32 in another order may differ after four updates at lr 1e-2."""
    options = [FP32, *options]
    losses, _ = run_in_turn([("run", [*options, "trainer.total_training_steps=2"]), ("run", options)])
    assert losses[1] == pytest.approx(on_cpu, rel=1e-3)


def test_what_is_saved_in_the_background_resumes_to_the_last_bit(run_in_turn, tmp_path):
    """Of rows so short that one block of a kernel computes each sum, in one order."""
    every, at_once = "trainer.save_freq=1", "trainer.async_save=false"
    runs = [("straight", []), ("at_once", [every, at_once]), ("resumed", [every]), ("resumed", [every])]
    runs[2][1].append("trainer.total_training_steps=2")
    losses, _ = run_in_turn([(name, [FP32, PACKED, *more]) for name, more in runs], tmp_path)
    assert losses[3] == losses[1] == losses[0]
    for file in ("model.safetensors", "global_step_4/state/rank_00000.safetensors"):
        straight, at_once, resumed = ((tmp_path / n / file).read_bytes() for n in ("straight", "at_once", "resumed"))
        assert straight == at_once == resumed, file


@pytest.fixture(scope="module")
def in_bf16(run_in_turn):
    """Losses of four steps in bf16 on padded rows, by transformers' own attention."""
    return run_in_turn([("padded", [PADDED, "model.attn_implementation=sdpa", "optim.lr=1e-3"])])[0][0]


@pytest.mark.parametrize("layout", [PACKED, PADDED])
@pytest.mark.parametrize("kernel", ["sdpa", "varlen", "flex", "flash_attention_2", "flash_attention_3"])
def test_every_kernel_in_bf16(run_in_turn, in_bf16, kernel, layout):
    """2 % is what the mantissa of bf16 may make of four updates at lr 1e-3."""
    here = Available.on(torch.device("cuda"))
    if kernel == "flash_attention_2" and here.flash_attn:
        pytest.skip("flash_attn is not installed")
    if kernel == "flash_attention_3" and (here.flash_attn_interface or here.capability[0] != 9):
        pytest.skip("flash_attn_interface is not installed, or this is no Hopper GPU")
    (losses,), _ = run_in_turn([("run", [layout, f"model.attn_implementation={kernel}", "optim.lr=1e-3"])])
    assert losses == pytest.approx(in_bf16, rel=0.02)


@pytest.mark.parametrize(
    "options",
    [[PACKED], [PADDED], [PACKED, AGAIN, "model.gradient_checkpointing_kind=selective"]],
    ids=["packed", "padded", "packed, selective"],
)
def test_compiled_layers_in_bf16(run_in_turn, in_bf16, options):
    """Half a minute each: compiled for the first shape of a micro-batch, and then for any."""
    (losses,), _ = run_in_turn([("run", [*options, "model.compile=true", "optim.lr=1e-3"])])
    assert losses == pytest.approx(in_bf16, rel=0.02)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
def test_liger_computes_the_same_losses(run_in_turn, tmp_path, kind):
    """fp32, four updates at lr 1e-2: its norms and MLPs round in another order than transformers'."""
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    model = f"model.partial_pretrain={tiny_model_dir(tmp_path / 'model', kind=kind)}"
    runs = [(use, [FP32, PACKED, model, f"model.use_liger={use}"]) for use in ("false", "true")]
    (without, with_liger), told = run_in_turn(runs)
    assert "computes RMS norms" in told
    assert with_liger == pytest.approx(without, rel=1e-3)
