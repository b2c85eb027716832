"""Adapters under FSDP2: the same numbers on any split, a base that never moves, and a merged model at the end."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft import fsdp_sft_trainer as trainer
from sft import load_config
from sft.evaluate.options import Options
from sft.evaluate.run import evaluate
from sft.parallel.shards import local_part
from sft.parallel.world import World, process_group
from tests.assets import tiny_model_dir
from tests.launch import read_metrics, succeed, train

LORA = ["model.lora_rank=4", "model.lora_alpha=8", "trainer.total_training_steps=4"]
KINDS = {
    "plain": [],
    "dora": ["model.use_dora=true", "model.use_rslora=true", "model.modules_to_save=[norm]"],
    "nf4": ["model.base_dtype=nf4"],
}
IDS = torch.arange(24).view(2, 12)


def curve(metrics: list[dict]) -> list[float]:
    return [value for line in metrics for value in (line["train/loss"], line["train/grad_norm"])]


def source_of(overrides: list[str]) -> Path:
    return Path(next(o.partition("=")[2] for o in overrides if o.startswith("model.partial_pretrain=")))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def test_any_split_gives_the_same_losses(base, run_all):
    """Layout, micro-batch, checkpointed activations, ranks that share rows; DoRA with a module trained whole, QLoRA."""
    splits = {
        "padded": [],
        "packed": ["use_remove_padding=true"],
        "checkpointed": ["use_remove_padding=true", "model.enable_gradient_checkpointing=true"],
    }
    runs = {(kind, split): [*base, *LORA, *KINDS[kind], *splits[split]] for kind in KINDS for split in splits}
    one = dict(zip(runs, run_all(list(runs.values()), 1), strict=True))
    sp = ["use_remove_padding=true", "ulysses_sequence_parallel_size=2"]
    runs |= {(kind, "sp"): [*base, *LORA, *KINDS[kind], *sp] for kind in KINDS.keys() - {"plain", "dora"}}
    two = dict(zip(runs, run_all(list(runs.values()), 2), strict=True))
    for (kind, split), metrics in [*one.items(), *two.items()]:
        assert curve(metrics) == pytest.approx(curve(one[kind, "padded"]), rel=1e-5), (kind, split)
    for kind in KINDS.keys() - {"plain"}:
        assert curve(one["plain", "padded"]) != pytest.approx(curve(one[kind, "padded"]), rel=1e-3), kind


SPARSE = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},  # kept as [E, O, I]
    "gpt_oss": {"num_local_experts": 3, "num_experts_per_tok": 2},  # kept as [E, I, O]
}


@pytest.mark.parametrize("family", SPARSE)
def test_adapters_of_experts_on_any_split(family, base, run_all, tmp_path):
    """One loss, and at the end a model that is base and adapter."""
    source = tiny_model_dir(tmp_path / family, kind=family, **SPARSE[family])
    names = "model.target_parameters=[experts.gate_up_proj,experts.down_proj]"
    run = [*base, f"model.partial_pretrain={source}", *LORA, names, "model.lora_rank=2"]
    sp = ["use_remove_padding=true", "ulysses_sequence_parallel_size=2", "data.micro_batch_size_per_gpu=1"]
    splits = {
        "padded": [*run, "data.micro_batch_size_per_gpu=1"],
        "packed": [*run, "use_remove_padding=true"],
        "checkpointed": [*run, "use_remove_padding=true", "model.enable_gradient_checkpointing=true"],
        "sp": [*run, *sp],
    }
    reference = curve(run_all([splits["padded"]], 1)[0])
    for split, metrics in zip(splits, run_all(list(splits.values()), 2), strict=True):
        assert curve(metrics) == pytest.approx(reference, rel=1e-5), split
    done = tmp_path / "call_1" / "run_0"
    before, after = load_file(source / "model.safetensors"), load_file(done / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name and "bias" not in name}
    adapter = str(done / "lora_adapter")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), adapter)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(done)), logits(adapted), rtol=0, atol=1e-5)


def test_a_head_that_trains_beside_the_adapters_or_has_one(base, run_all, tmp_path):
    """Trained whole it goes on to be fused with the loss; with an adapter on it, whole logits are computed."""
    model = f"model.partial_pretrain={tiny_model_dir(tmp_path / 'untied', tie=False)}"
    heads = {
        "whole": ["model.modules_to_save=[lm_head]"],
        "adapted": ["model.target_modules=[lm_head,q_proj]"],
    }
    runs = [
        [*base, model, *LORA, *head, f"use_remove_padding={packed}"]
        for head in heads.values()
        for packed in (True, False)
    ]
    one, two = run_all(runs, 1), run_all(runs, 2)
    for whole in (0, 2):
        reference = curve(one[whole])
        for metrics in (one[whole + 1], two[whole], two[whole + 1]):
            assert curve(metrics) == pytest.approx(reference, rel=1e-5)


def test_more_ranks_than_rank_of_the_adapter_and_uneven_parts_of_a_base_in_4_bits(base, run_all, tmp_path):
    """A of 1 x I and B of O x 1 on 4 ranks: three of them hold nothing of A. Packed keys of 10 rows, and experts."""
    run = [*base, *LORA, "model.lora_rank=1", "data.micro_batch_size_per_gpu=1"]
    uneven = tiny_model_dir(tmp_path / "uneven", num_attention_heads=32, num_key_value_heads=1, head_dim=10)
    experts = tiny_model_dir(tmp_path / "experts", kind="gpt_oss", num_local_experts=3, num_experts_per_tok=2)
    packed = [[*run, "model.base_dtype=nf4", f"model.partial_pretrain={model}"] for model in (uneven, experts)]
    one, four = run_all([run, *packed], 1), run_all([run, *packed], 4)
    for alone, together in zip(one, four, strict=True):
        assert curve(together) == pytest.approx(curve(alone), rel=1e-5)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> dict[str, Path]:
    """Run directories, 2 ranks: each kind straight, resumed in the middle, and its result as the start of another."""
    home = tmp_path_factory.mktemp("lora")
    runs = {}
    for kind, extra in KINDS.items():
        run = [*base, *LORA, *extra, "model.lora_dropout=0.1", "trainer.save_freq=2"]
        runs[kind] = run
        runs[f"{kind}_half"] = [
            *run,
            "trainer.total_training_steps=2",
            f"trainer.default_local_dir={home}/{kind}_resumed",
        ]
        runs[f"{kind}_resumed"] = run
        # Without dropout a warm start must begin with the loss of the merged model.
        warm = [*base, *LORA, *extra, f"model.lora_adapter_path={home / kind / 'lora_adapter'}"]
        runs[f"{kind}_warm"] = [*warm, "trainer.total_training_steps=1"]
        runs[f"{kind}_merged"] = [*base, f"model.partial_pretrain={home / kind}", "trainer.total_training_steps=1"]
    placed = [[f"trainer.default_local_dir={home / name}", *overrides] for name, overrides in runs.items()]
    (home / "runs.json").write_text(json.dumps(placed))
    done = succeed([str(home / "runs.json")], ranks=2, cwd=home, module="tests.dist.several")
    (home / "log").write_text(done.stderr)
    return {name: home / name for name in [*runs, "log"]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_ends_merged_with_the_adapter_beside(kind, base, trained):
    """Merged == base + adapter to 1e-5 in fp32 (logits of order 1); what no adapter touches keeps its bits."""
    source, run = source_of(base), trained[kind]
    before, after = load_file(source / "model.safetensors"), load_file(run / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {name for name in before if "_proj." in name}
    assert changed == (expected | {"model.norm.weight"} if kind == "dora" else expected)

    merged = AutoModelForCausalLM.from_pretrained(run)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source), str(run / "lora_adapter"))
    assert (logits(merged) - logits(AutoModelForCausalLM.from_pretrained(source))).abs().max() > 0.01
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=0, atol=1e-5)
    config = json.loads((run / "lora_adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, str(source.resolve()))
    assert (run / "lora_adapter" / "adapter_model.safetensors").stat().st_mode & 0o044


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bit_equal(kind, trained):
    """With dropout, so that the random state counts as well."""
    assert f"continuing from {trained[f'{kind}_resumed']}/global_step_2" in trained["log"].read_text()
    for name in ("model.safetensors", "lora_adapter/adapter_model.safetensors"):
        expected, found = load_file(trained[kind] / name), load_file(trained[f"{kind}_resumed"] / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name


def test_ranks_drop_out_inputs_of_their_own(trained):
    """Equal masks on all ranks would drop the same places of every micro-batch."""
    state = trained["plain_warm"] / "global_step_1" / "state"  # without dropout nobody draws: as they were seeded
    one, other = (load_file(state / f"rng_0000{rank}.safetensors")["cpu"] for rank in (0, 1))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_start_begins_where_the_adapter_ended(kind, trained):
    cold, warm, merged = (
        read_metrics(trained[name])[0]["train/loss"] for name in (kind, f"{kind}_warm", f"{kind}_merged")
    )
    # A base in 4 bits is merged into the weights that it was rounded from.
    assert warm == pytest.approx(merged, rel=0.03 if kind == "nf4" else 1e-5)
    assert (warm == pytest.approx(merged, rel=1e-5)) == (kind != "nf4")
    assert warm < cold - 0.3  # four steps of learning lie between them


def test_an_adapter_is_scored_on_the_base_in_4_bits_and_merged(base, trained):
    adapter = [*LORA, *KINDS["nf4"], f"model.lora_adapter_path={trained['nf4'] / 'lora_adapter'}"]
    merged = [f"model.partial_pretrain={trained['nf4']}", *LORA, *KINDS["nf4"]]  # overrides of training may stay
    losses = []
    for options in (adapter, merged, [f"model.partial_pretrain={trained['nf4']}"], []):
        numbers = evaluate(load_config([*base, *options]), Options(), World.from_environment())
        losses.append(next(iter(numbers.values()))["loss"])
    on_4_bits, with_overrides, alone, untrained = losses
    assert with_overrides == alone
    assert on_4_bits == pytest.approx(alone, rel=0.03) and on_4_bits != pytest.approx(alone, rel=1e-5)
    assert max(losses[:3]) < untrained - 0.3


def test_what_trains_is_said_once_per_run_and_all_that_a_checkpoint_holds(trained):
    log = trained["log"].read_text()
    assert log.count("parameters train (") == 4 * len(KINDS)  # the merged ones train whole
    assert "gemm_4bit" not in log, "what bitsandbytes says while it is imported"
    for file in (trained["plain"] / "global_step_4" / "state").glob("rank_*.safetensors"):
        assert all(".lora_" in name for name in load_file(file))


def test_the_frozen_weights_in_memory_never_move(base, tmp_path):
    """The export copies them from the source, so look at those that training held. A world of one, in this process."""
    config = load_config([*base, *LORA, f"trainer.default_local_dir={tmp_path / 'run'}"])
    world = World.from_environment()
    inputs = trainer.read_inputs(config, world)
    with process_group(world):
        job = trainer.build(config, world, inputs)
        hashes = weight_hashes(job.model)
        for step in range(1, 4):
            trainer.train_step(job, *next(trainer.parts_from(job, step)))
            moved = {name for name, digest in weight_hashes(job.model).items() if digest != hashes[name]}
            assert moved
            assert all(".lora_" in name for name in moved)
        trained = {id(weight) for group in job.optimizer.param_groups for weight in group["params"]}
        for name, weight in job.model.named_parameters():
            assert weight.requires_grad == (id(weight) in trained) == (".lora_" in name), name
        del job


def weight_hashes(model) -> dict[str, str]:
    return {
        name: hashlib.sha256(local_part(weight).detach().numpy().tobytes()).hexdigest()
        for name, weight in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lora_alpha=16", "belongs to another run:\n  lora.alpha: the checkpoint has 8, this run 16\nUse"),
        ("model.lora_rank=8", "belongs to another run:\n  lora.rank: the checkpoint has 4, this run 8\nUse"),
        (
            "model.target_modules=[q_prj]",
            "model.target_modules: 'q_prj' is no module of the model; did you mean q_proj",
        ),
        ("model.lora_adapter_path={plain}/lora_adapter model.lora_rank=8", "model.lora_rank is 4 there and 8 here"),
    ],
)
def test_what_does_not_fit_ends_the_run_with_one_message(override, message, base, trained):
    overrides = [*base, *LORA, "model.lora_dropout=0.1", f"trainer.default_local_dir={trained['plain']}"]
    done = train([*overrides, *override.format(**trained).split()], ranks=0, cwd=trained["plain"].parent)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_verls_documented_command(tmp_path):
    """GSM8K's columns, 40 rows, a bf16 model, defaults otherwise: bf16 compute over a frozen bf16 base."""
    model = tiny_model_dir(tmp_path / "model", kind="qwen2", dtype="bfloat16")
    rows = [
        {
            "data_source": "gsm8k",
            "extra_info": {"question": f"What is {k} + {k}?", "answer": f"{k} + {k} = {2 * k}", "index": k},
        }
        for k in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:8]), tmp_path / "test.parquet")
    run = tmp_path / "run"
    command = f"""
        data.train_files={tmp_path}/train.parquet data.val_files={tmp_path}/test.parquet data.cache_dir={tmp_path}/cache
        data.prompt_key=extra_info data.response_key=extra_info optim.lr=1e-4 data.prompt_dict_keys=['question']
        +data.response_dict_keys=['answer'] data.micro_batch_size_per_gpu=4 model.partial_pretrain={model}
        trainer.default_local_dir={run} trainer.project_name=gsm8k-sft trainer.experiment_name=gsm8k-sft-tiny
        trainer.logger=['console'] trainer.total_epochs=1 trainer.default_hdfs_dir=null
        model.lora_rank=32 model.lora_alpha=16 model.target_modules=all-linear model.strategy=fsdp
    """
    succeed(command.split(), ranks=2, cwd=tmp_path)
    assert len(AutoTokenizer.from_pretrained(run)) == len(AutoTokenizer.from_pretrained(model))
    reloaded = AutoModelForCausalLM.from_pretrained(run)
    assert reloaded.dtype == torch.bfloat16
    before, after = load_file(model / "model.safetensors"), load_file(run / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert not torch.equal(logits(reloaded), logits(AutoModelForCausalLM.from_pretrained(model)))
