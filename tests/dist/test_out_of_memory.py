"""A rank without memory ends the run with the table of what takes how much, and no other rank waits for it."""

from tests.launch import train

STEPS = ["trainer.total_training_steps=4", "data.micro_batch_size_per_gpu=1"]


def test_one_rank_runs_out_of_memory(base, tmp_path):
    overrides = [*base, *STEPS, f"trainer.default_local_dir={tmp_path / 'run'}"]
    done = train(overrides, ranks=2, cwd=tmp_path, module="tests.dist.short_of_memory")
    assert done.returncode != 0
    assert "exitcode  : 2 " in done.stderr
    said = "error on rank 1: out of memory in step 2 (CUDA out of memory. Tried to allocate 2.00 GiB.)\nmemory: "
    assert done.stderr.count(said) == 1
    assert "would save: " in done.stderr.partition(said)[2]
    assert "model.enable_gradient_checkpointing=true" in done.stderr
    assert "page of advice" not in done.stderr
    assert done.stderr.count("memory: about ") == 1, "the estimate is told once, before the model is built"
