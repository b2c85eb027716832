"""What a run leaves behind: one directory, whole, loadable, and nothing anywhere else."""

import hashlib
import json
import os
import re

import pytest
import torch

from sft.config import load_config
from sft.errors import InputError
from sft.train.places import refuse_what_is_in_the_way
from tests.assets import base_model_dir
from tests.launch import read_metrics, succeed

MODEL = {
    "README.md",
    "loss.png",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
FILES = {
    *MODEL,
    *(f"global_step_3/huggingface/{name}" for name in MODEL),
    "checkpoints.jsonl",
    "config.yaml",
    "metrics.jsonl",
    "result.json",
    "run.json",
    "training.log",
    "global_step_3/manifest.json",
    "global_step_3/manifest.sha256",
    "global_step_3/state/rank_00000.safetensors",
    "global_step_3/state/rank_00001.safetensors",
    "global_step_3/state/rng_00000.safetensors",
    "global_step_3/state/rng_00001.safetensors",
}


def files(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A finished run of 3 steps on 2 ranks, started in an empty directory: (run_dir, its process, its command)."""
    cwd = tmp_path_factory.mktemp("cwd")
    overrides = [*base, "trainer.total_training_steps=3", "trainer.test_freq=2", "trainer.default_local_dir=run"]
    return cwd, succeed(overrides, ranks=2, cwd=cwd, may_fork=False), overrides


def test_the_exact_set_of_files_and_nothing_beside_the_run_directory(finished):
    cwd, _, _ = finished
    template = "chat_template.jinja"  # in a file of its own, where this version of transformers saves it so
    templates = {template, f"global_step_3/huggingface/{template}"} if (cwd / "run" / template).exists() else set()
    assert files(cwd / "run") == FILES | templates
    assert [path.name for path in cwd.iterdir()] == ["run"]


def test_whatever_a_run_wrote_is_looked_for_at_the_start(finished, tmp_path):
    """The names stand in many rooms; here is what they became."""
    cwd, _, overrides = finished
    names = [path.name for path in (cwd / "run").iterdir() if not path.is_dir()]
    for name in names:
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError) as refusal:
        refuse_what_is_in_the_way(load_config([*overrides, f"trainer.default_local_dir={tmp_path}"]))
    assert [name for name in names if f"{name} is a pipe" not in str(refusal.value)] == []


def test_lines_for_people_and_lines_for_programs_say_the_same(finished):
    cwd, done, _ = finished
    metrics = read_metrics(cwd / "run")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        shown = f"step={line['step']} loss={line['train/loss']:.4f} lr={line['train/lr']:.3e}"
        assert re.search(rf"^{re.escape(shown)} ", done.stdout, re.MULTILINE)
        assert re.search(rf" {re.escape(shown)} ", (cwd / "run" / "training.log").read_text())
    assert ["val/loss" in line for line in metrics] == [False, True, True]
    assert "step = 2 dp x 1 micro-batch of 2 samples = 4 samples" in done.stdout


def test_the_data_is_told_once(finished):
    cwd, done, _ = finished
    lines = (cwd / "run" / "training.log").read_text().splitlines()
    told = ["train: 10 rows -> 10 samples", "10 of 10 trained turns end with a stop token", "val: 7 rows -> 7 samples"]
    for sentence in told:
        assert len([line for line in lines if sentence in line]) == 1
        assert (done.stdout + done.stderr).count(sentence) == 1
    assert "samples that are in the training data too: 7 (val.jsonl:1 = train.jsonl:1, " in done.stdout


def test_perf_metrics_are_there_and_plausible(finished):
    cwd, _, _ = finished
    last = read_metrics(cwd / "run")[-1]
    assert last["perf/tokens_per_sec_per_gpu"] > 0 and last["perf/max_memory_allocated_gb"] > 0
    assert 0 < last["perf/supervised_frac"] < 1 and 0 <= last["perf/padding_frac"] < 1
    assert "perf/mfu" not in last  # nobody knows the peak of a CPU
    assert last["train/num_input_tokens_seen"] > 0 and last["perf/data_wait_s"] >= 0


def test_run_json_and_config_yaml_say_what_ran(finished):
    import yaml

    cwd, _, _ = finished
    facts = json.loads((cwd / "run" / "run.json").read_text())
    assert facts["world_size"] == 2 and facts["versions"]["torch"] and facts["exported_step"] == 3
    assert {"data", "template"} <= facts["fingerprint"].keys()
    config = yaml.safe_load((cwd / "run" / "config.yaml").read_text())
    assert config["optim"]["lr"] == 0.01 and config["data"]["train_batch_size"] == 4


def test_started_again_a_finished_run_changes_nothing_but_what_its_disk_lost(finished):
    """After a power cut a file may be empty or missing: it is published again, before "nothing to do" is said."""
    cwd, _, overrides = finished

    def digests():
        return {name: hashlib.sha256((cwd / "run" / name).read_bytes()).hexdigest() for name in files(cwd / "run")}

    before = digests()
    (cwd / "run" / "config.json").write_bytes(b"")
    (cwd / "run" / "tokenizer.json").unlink()
    done = succeed(overrides, ranks=2, cwd=cwd)
    assert re.search(r"is not what was published \((.*)\): published again", done.stderr)[1].split("; ") == [
        f"config.json has 0 bytes, {(cwd / 'run' / 'config.json').stat().st_size} were written",
        "tokenizer.json is missing",
    ]
    assert "nothing to do" in done.stderr
    assert digests() == before


def test_the_run_directory_is_a_model(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cwd, _, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(cwd / "run")
    model, report = AutoModelForCausalLM.from_pretrained(cwd / "run", output_loading_info=True)
    assert not any(report.values()), report
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 1 + 1?"}], add_generation_prompt=True, return_tensors="pt"
    )
    reply = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert reply.shape[1] > prompt["input_ids"].shape[1]
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert torch.isfinite(next(model.parameters())).all()


@pytest.mark.parametrize("ranks", [0, 2])
def test_fewer_rows_than_a_batch_train_one_smaller_step_and_say_so(base, tmp_path, ranks):
    overrides = [*base, "data.train_max_samples=3", "data.train_batch_size=8", "trainer.total_epochs=1"]
    done = succeed([*overrides, f"trainer.default_local_dir={tmp_path / 'run'}"], ranks=ranks, cwd=tmp_path)
    assert len(read_metrics(tmp_path / "run")) == 1
    assert "warning: that is all, fewer than data.train_batch_size=8" in done.stdout


def test_total_training_steps_is_exact_beyond_and_below_the_epochs(base, run_all):
    """10 rows in batches of 4 are 3 steps an epoch; the schedule ends at its minimum wherever the run ends."""
    decaying = [*base, "optim.lr_scheduler=cosine", "optim.min_lr_ratio=0.1", "trainer.total_epochs=1"]
    runs = run_all([[*decaying, f"trainer.total_training_steps={number}"] for number in (2, 7)] + [decaying], 1)
    assert [len(metrics) for metrics in runs] == [2, 7, 3]
    assert [metrics[-1]["train/lr"] for metrics in runs] == pytest.approx([1e-3] * 3)


def test_checkpoints_by_interval_kind_and_max_ckpt_to_keep(base, run_all, tmp_path):
    save = [*base, "trainer.total_training_steps=6", "trainer.save_freq=2", "trainer.save_hf_freq=3"]
    at_once = [*save, "trainer.async_save=false"]
    off = [*base, "trainer.total_training_steps=6", "trainer.save_freq=0", "trainer.save_hf_freq=0"]
    curves = run_all([save, at_once, [*save, "trainer.max_ckpt_to_keep=1"], off], 2)
    assert [line["train/loss"] for line in curves[0]] == [line["train/loss"] for line in curves[1]]

    def ledger(number):
        lines = (tmp_path / "call_0" / f"run_{number}" / "checkpoints.jsonl").read_text().splitlines()
        return [(entry["step"], "state_path" in entry, "sampler_path" in entry) for entry in map(json.loads, lines)]

    def checkpoints(number):
        return sorted(path.name for path in (tmp_path / "call_0" / f"run_{number}").glob("global_step_*"))

    assert ledger(0) == ledger(1) == [(2, True, False), (3, False, True), (4, True, False), (6, True, True)]
    assert checkpoints(0) == ["global_step_2", "global_step_3", "global_step_4", "global_step_6"]
    assert checkpoints(2) == checkpoints(3) == ["global_step_6"] and ledger(3) == [(6, True, True)]
    state = "global_step_4/state/rank_00001.safetensors"
    in_background, at_once = (tmp_path / "call_0" / f"run_{number}" / state for number in (0, 1))
    assert in_background.read_bytes() == at_once.read_bytes()


def test_a_chat_template_of_ones_own_changes_the_tokens_and_stays_with_the_model(base, run_all, tmp_path):
    from transformers import AutoTokenizer

    template = tmp_path / "shout.jinja"
    template.write_text(
        "{% for message in messages %}<|im_start|>{{ message.role | upper }}\n{{ message.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>ASSISTANT\n{% endif %}"
    )
    one_step = [*base, "trainer.total_training_steps=1"]
    own, other = run_all([one_step, [*one_step, f"data.chat_template={template}"]], 1)
    assert own[0]["train/num_input_tokens_seen"] != other[0]["train/num_input_tokens_seen"]
    assert AutoTokenizer.from_pretrained(tmp_path / "call_0" / "run_1").chat_template == template.read_text()


@pytest.mark.parametrize("tie", [True, False])
def test_a_base_model_is_given_chatml_its_tokens_and_rows_for_them(base, tmp_path, tie):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = base_model_dir(tmp_path / "base", tie=tie)
    overrides = [*base, f"model.partial_pretrain={source}", "trainer.total_training_steps=1", "optim.lr=1e-6"]
    done = succeed([*overrides, "optim.weight_decay=0", "trainer.default_local_dir=run"], ranks=2, cwd=tmp_path)
    rows = len(AutoTokenizer.from_pretrained(source))
    assert "ChatML is used (data.chat_template=chatml)" in done.stderr
    assert f"added to the tokenizer, and saved with the model: <|im_start|> = {rows}." in done.stderr
    assert f"the vocabulary grows from {rows} to 448 rows" in done.stderr

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not any(report.values()), report
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") == rows and len(tokenizer) == rows + 1
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)
    assert prompt["input_ids"][0] == rows
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 448
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    trained, before = load_file(tmp_path / "run" / "model.safetensors"), load_file(source / "model.safetensors")
    assert ("lm_head.weight" in trained) is not tie
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & trained.keys():
        expected = torch.cat([before[name], before[name].mean(0).expand(448 - rows, -1)])
        torch.testing.assert_close(trained[name], expected, atol=3e-6, rtol=0)  # one step of lr 1e-6 away


def test_external_lib_is_imported_before_the_model_is_looked_for(base, tmp_path):
    """Libraries register architectures of their own by being imported."""
    (tmp_path / "my_models.py").write_text("print('my_models registered')\n")
    overrides = [*base, "trainer.total_training_steps=1", "model.external_lib=my_models"]
    done = succeed([*overrides, f"trainer.default_local_dir={tmp_path / 'run'}"], ranks=0, cwd=tmp_path)
    assert done.stdout.startswith("my_models registered")
