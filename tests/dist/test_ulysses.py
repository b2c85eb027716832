"""Sequence parallelism changes who computes which tokens, never the number."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.assets import tiny_model_dir
from tests.launch import read_metrics, succeed, train

STEPS = ["trainer.total_training_steps=4", "trainer.test_freq=2", "use_remove_padding=true"]
CHECKPOINTING = ["model.enable_gradient_checkpointing=true"]
BUDGET = ["data.max_length=80", "data.max_tokens_per_gpu=40"]  # of sp ranks together, so that a sample does fit
COMPARED = ("train/loss", "train/grad_norm", "val/loss", "val/perplexity", "val/token_accuracy")
COUNTED = ("train/num_input_tokens_seen", "train/epoch", "perf/supervised_frac")


def curve(metrics):
    """Losses, gradient norms and validation of every step; a later loss depends on every gradient before it."""
    return [line[key] for line in metrics for key in COMPARED if key in line]


def counts(metrics):
    return [line[key] for line in metrics for key in COUNTED]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Heads to share between the ranks: 12 on 3 do not even out over sp=2 (or 4) without repeating some."""
    home = tmp_path_factory.mktemp("models")
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    tiny_model_dir(home / "one_kv_head", num_key_value_heads=1)
    tiny_model_dir(home / "three_kv_heads", num_attention_heads=12, num_key_value_heads=3, head_dim=8)
    tiny_model_dir(home / "sliding_window", kind="qwen2", **window)
    return {"default": []} | {path.name: [f"model.partial_pretrain={path}"] for path in home.iterdir()}


def test_any_sp_any_heads_equals_one_rank(base, run_all, models):
    """The rows are of uneven length and several samples share one, so rows are padded and cut inside of samples."""
    references = dict(zip(models, run_all([[*base, *STEPS, *model] for model in models.values()], 1), strict=True))
    assert len(curve(references["default"])) == 4 * 2 + 2 * 3

    for ranks, sp, names in ((2, 2, models), (4, 2, ["default"]), (4, 4, ["default"])):
        variants = [(name, []) for name in names] + [("default", options) for options in (CHECKPOINTING, BUDGET)]
        shared = [*base, *STEPS, f"ulysses_sequence_parallel_size={sp}"]
        runs = [[*shared, *models[name], *options] for name, options in variants]
        for (name, options), metrics in zip(variants, run_all(runs, ranks), strict=True):
            assert curve(metrics) == pytest.approx(curve(references[name]), rel=1e-5), (ranks, sp, name, options)
            assert counts(metrics) == pytest.approx(counts(references[name])), (ranks, sp, name, options)
            # Fewer than sp tokens of padding in a row; the row of a rank without samples is padding alone.
            assert all(line["perf/padding_frac"] < 0.1 for line in metrics)


def test_a_run_continues_on_another_sp(base, run_all, tmp_path):
    first = [*base, *STEPS, "trainer.total_training_steps=2", "ulysses_sequence_parallel_size=2"]
    rest = [
        *[*base, *STEPS, "trainer.resume_mode=resume_path"],
        f"trainer.resume_from_path={tmp_path / 'call_0' / 'run_0' / 'global_step_2'}",
    ]
    whole = [*base, *STEPS]
    begun, continued, uninterrupted = run_all([first, rest, whole], 2)
    assert curve(begun) + curve(continued) == pytest.approx(curve(uninterrupted), rel=1e-5)


def test_heads_that_cannot_be_shared_are_refused_with_the_sizes_that_work(base, tmp_path):
    tiny_model_dir(tmp_path / "model", num_attention_heads=6)
    overrides = [*base, *STEPS, "model.partial_pretrain=model", "ulysses_sequence_parallel_size=4"]
    done = train(overrides, ranks=4, cwd=tmp_path)
    assert done.returncode != 0
    said = "ulysses_sequence_parallel_size=4 must divide the 6 attention heads of qwen3; valid on 4 ranks: 1, 2."
    assert done.stderr.count(said) == 1


def test_the_documented_command_of_sequence_parallelism(base, tmp_path):
    """The overrides of verl's example for sp=2, on rows whose text sits in a struct."""
    texts = [{"question": f"What is {k} + {k}? ", "answer": f"It is {2 * k}.", "index": k} for k in range(40)]
    rows = [{"data_source": "gsm8k", "extra_info": text} for text in texts]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    succeed(
        [
            *base[:1],
            *["data.train_files=rows.parquet", "data.val_files=rows.parquet", "data.cache_dir=cache"],
            *["data.prompt_key=extra_info", "data.response_key=extra_info", "data.prompt_dict_keys=['question']"],
            *["+data.response_dict_keys=['answer']", "data.micro_batch_size=4", "trainer.default_hdfs_dir=null"],
            *["ulysses_sequence_parallel_size=2", "use_remove_padding=true"],
            *["optim.lr=1e-3", "trainer.total_training_steps=3", "trainer.default_local_dir=run"],
        ],
        ranks=2,
        cwd=tmp_path,
    )
    told = (tmp_path / "run" / "training.log").read_text()
    assert "step = 1 dp (of 2 sp ranks each) x 10 micro-batches of 4 samples = 40 samples" in told
    metrics = read_metrics(tmp_path / "run")
    assert [line["train/epoch"] for line in metrics] == [1, 2, 3]
    assert metrics[-1]["val/loss"] < metrics[0]["val/loss"]
    assert (tmp_path / "run" / "model.safetensors").exists()
