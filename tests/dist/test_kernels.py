"""Kernels x layouts x sequence parallelism x ranks: the same losses and gradient norms.

CUDA's kernels are slow stand-ins here (stand_ins.py), so that all around them is what runs on a GPU.
"""

import pytest

from tests.assets import tiny_model_dir

STEPS = ["trainer.total_training_steps=3", "optim.lr=1e-3"]
LORA = ["model.lora_rank=4", "model.enable_gradient_checkpointing=true"]
WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
SP = "ulysses_sequence_parallel_size=2"


def curve(metrics):
    return [value for line in metrics for value in (line["train/loss"], line["train/grad_norm"])]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One that every kernel computes, one with soft-capped scores, one with sinks; both with windows."""
    home = tmp_path_factory.mktemp("models")
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.2}
    tiny_model_dir(home / "gemma2", kind="gemma2", attn_logit_softcapping=2.0, query_pre_attn_scalar=4, **WINDOW)
    tiny_model_dir(home / "gpt_oss", kind="gpt_oss", **experts, **WINDOW)
    return {"qwen3": []} | {path.name: [f"model.partial_pretrain={path}"] for path in home.iterdir()}


KERNELS = {
    "qwen3": ["sdpa", "blocked", "varlen", "flash_attention_2", "flash_attention_3", "flex"],
    "gemma2": ["sdpa", "flash_attention_2", "flash_attention_3", "flex"],
    "gpt_oss": ["sdpa", "flex"],
}


def variants(models, *, ranks):
    """(model, layout, kernel) -> overrides."""
    layouts = {"packed": ["use_remove_padding=true"]}
    if (
        ranks == 1
    ):  # a kernel knows nothing of the ranks that read other rows: test_one_loss.py has padded rows on several
        layouts = {"padded": ["use_remove_padding=false"], **layouts}
    else:
        layouts["packed, sp=2"] = ["use_remove_padding=true", SP]
    return {
        (model, layout, kernel): [*overrides, *layouts[layout], f"model.attn_implementation={kernel}"]
        for model, overrides in models.items()
        for layout in layouts
        for kernel in KERNELS[model]
    }


def test_every_kernel_layout_and_split_agrees(base, run_all, models):
    references = {}
    for ranks in (1, 2):
        runs = variants(models, ranks=ranks)
        placed = [[*base, *STEPS, "data.micro_batch_size_per_gpu=2", *overrides] for overrides in runs.values()]
        for name, metrics in zip(runs, run_all(placed, ranks, "tests.dist.stand_ins"), strict=True):
            found = curve(metrics)
            assert len(found) == 6
            reference = references.setdefault(name[0], found)  # padded rows on one rank, in transformers' attention
            assert found == pytest.approx(reference, rel=2e-5), (ranks, *name)
    assert len({tuple(reference) for reference in references.values()}) == len(models)


def test_lora_and_recomputed_activations_over_sequence_parallel_ranks(base, run_all, models):
    plain, split = (
        [[*base, *STEPS, *LORA, "use_remove_padding=true", *models[name], *more] for name in ("qwen3", "gpt_oss")]
        for more in ([], [SP])
    )
    for whole, shared in zip(run_all(plain, 1), run_all(split, 2), strict=True):
        assert curve(shared) == pytest.approx(curve(whole), rel=1e-5)
