"""On a CUDA device: the same losses as on the CPU. `python -m pytest tests/gpu`"""

import pytest
import torch

from sft import fsdp_sft_trainer as trainer
from sft import load_config
from sft.distributed import World, process_group
from sft.host_memory import HostMemory
from sft.shards import local_part
from tests.assets import tiny_model_dir, write_jsonl
from tests.dist.conftest import read_metrics
from tests.launch import succeed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


FSDP = "model.fsdp_config"
SELECTIVE = "model.gradient_checkpointing_kind=selective"


@pytest.mark.parametrize("offload", [True, False])
def test_offloaded_weights_and_moments_live_in_cpu_memory(tmp_path, offload):
    model = tiny_model_dir(tmp_path / "model")
    rows = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}. " * (1 + k)} for k in range(8)]
    config = load_config(
        [
            f"model.partial_pretrain={model}",
            f"data.train_files={write_jsonl(tmp_path / 'train.jsonl', rows)}",
            "data.val_files=null",
            f"data.cache_dir={tmp_path / 'cache'}",
            *["data.train_batch_size=4", "data.micro_batch_size_per_gpu=2", f"{FSDP}.cpu_offload={offload}"],
            f"trainer.default_local_dir={tmp_path / 'run'}",
        ]
    )
    world = World.from_environment()
    inputs = trainer.read_inputs(config, world)
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


@pytest.mark.parametrize(
    "options",
    [
        ["use_remove_padding=true"],
        ["use_remove_padding=false"],
        ["use_remove_padding=true", f"{FSDP}.cpu_offload=true"],
        ["use_remove_padding=true", f"{FSDP}.reshard_after_forward=false", f"{FSDP}.reduce_gradients=once"],
        ["use_remove_padding=true", "model.enable_gradient_checkpointing=true", SELECTIVE],
        ["use_remove_padding=true", "model.compile=true"],
    ],
)
def test_four_steps_equal_the_cpu_and_resume(tmp_path, options):
    """fp32; 1e-3 is what TF32-free matmuls in another order may differ after four updates at lr 1e-2."""
    tiny_model_dir(tmp_path / "model")
    rows = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}. " * (1 + k)} for k in range(8)]
    common = [
        f"model.partial_pretrain={tmp_path / 'model'}",
        f"data.train_files={write_jsonl(tmp_path / 'train.jsonl', rows)}",
        "data.val_files=null",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.train_batch_size=4",
        "data.micro_batch_size_per_gpu=2",
        "model.fsdp_config.compute_dtype=fp32",
        "optim.lr=1e-2",
        "optim.lr_scheduler=constant",
        "trainer.save_freq=2",
        *options,
    ]

    def losses(name, steps, device):
        overrides = [*common, f"trainer.total_training_steps={steps}", f"trainer.default_local_dir={tmp_path / name}"]
        succeed(overrides, ranks=1, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": device})
        return [line["train/loss"] for line in read_metrics(tmp_path / name)]

    on_cpu = losses("cpu", 4, "")
    losses("cuda", 2, "0")
    assert losses("cuda", 4, "0") == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.parametrize("kernel", ["sdpa", "varlen", "flex"])
def test_three_steps_with_every_kernel_equal_padded_rows(tmp_path, kernel):
    """bf16 compute; 2 % is what its mantissa may make of three updates at lr 1e-3."""
    tiny_model_dir(tmp_path / "model")
    rows = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}. " * (1 + k)} for k in range(8)]
    common = [
        f"model.partial_pretrain={tmp_path / 'model'}",
        f"data.train_files={write_jsonl(tmp_path / 'train.jsonl', rows)}",
        "data.val_files=null",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.train_batch_size=4",
        "data.micro_batch_size_per_gpu=2",
        "optim.lr=1e-3",
        "trainer.total_training_steps=3",
    ]

    def losses(name, *overrides):
        run_dir = f"trainer.default_local_dir={tmp_path / name}"
        succeed([*common, *overrides, run_dir], ranks=1, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": "0"})
        return [line["train/loss"] for line in read_metrics(tmp_path / name)]

    padded = losses("padded", "use_remove_padding=false")
    packed = losses("packed", "use_remove_padding=true", f"model.attn_implementation={kernel}")
    assert packed == pytest.approx(padded, rel=0.02)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
def test_liger_computes_the_same_losses(tmp_path, kind):
    """fp32, four updates at lr 1e-2: its norms and MLPs round in another order than transformers'."""
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    tiny_model_dir(tmp_path / "model", kind=kind)
    rows = [{"question": f"What is {k} + {k}?", "answer": f"{2 * k}. " * (1 + k)} for k in range(8)]
    common = [
        f"model.partial_pretrain={tmp_path / 'model'}",
        f"data.train_files={write_jsonl(tmp_path / 'train.jsonl', rows)}",
        "data.val_files=null",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.train_batch_size=4",
        "data.micro_batch_size_per_gpu=2",
        "model.fsdp_config.compute_dtype=fp32",
        "optim.lr=1e-2",
        "optim.lr_scheduler=constant",
        "trainer.total_training_steps=4",
        "use_remove_padding=true",
    ]
    losses, logs = [], []
    for use in ("false", "true"):
        run = [*common, f"model.use_liger={use}", f"trainer.default_local_dir={tmp_path / use}"]
        done = succeed(run, ranks=1, cwd=tmp_path, env={"CUDA_VISIBLE_DEVICES": "0"})
        losses.append([line["train/loss"] for line in read_metrics(tmp_path / use)])
        logs.append(done.stdout + done.stderr)
    assert "liger-kernel" in logs[1] and "computes RMS norms" in logs[1]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
