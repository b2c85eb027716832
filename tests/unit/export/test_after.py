"""python -m sft.export: every kind of checkpoint in every format, whole or absent."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.export.__main__ import main
from sft.export.after import _whole_or_absent
from tests.assets import CHATML, tiny_model_dir, tiny_tokenizer
from tests.disk import Disk
from tests.launch import clean_environment
from tests.runs import train

IDS = torch.arange(3, 40)[None]


@pytest.fixture
def export(tmp_path, monkeypatch, capsys):
    """export(source, "--format", "pt"): (exit code, what it says); run in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def export(source, *arguments):
        capsys.readouterr()
        code = main([str(source), *map(str, arguments)])
        told = capsys.readouterr()
        return code, told.err if code else told.out

    return export


CARD = {"README.md", "loss.png"}
"""What tells of a run beside its model, and stays with it."""


def same_files(one, other):
    names = {str(path.relative_to(one)) for path in one.rglob("*") if path.is_file()}
    assert names == {str(path.relative_to(other)) for path in other.rglob("*") if path.is_file()} - CARD
    for name in names:
        if name.endswith(".safetensors"):
            mine, theirs = load_file(one / name), load_file(other / name)
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine), name
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.mark.parametrize("run", ["full", "lora", "grown"])
def test_a_model_rebuilt_from_the_state_is_the_one_the_run_wrote(run, export, tmp_path, request):
    """global_step_4 is BOTH; without its model it is what STATE is."""
    run_dir = request.getfixturevalue(run)
    code, told = export(run_dir / "global_step_4")
    assert (code, told) == (0, "sums-step4: step 4 of sums\n")
    same_files(tmp_path / "sums-step4", run_dir / "global_step_4" / "huggingface")
    assert export(run_dir / "global_step_2", "--out", "rebuilt")[0] == 0  # STATE
    saved_again = as_state_only(run_dir, tmp_path)
    assert export(saved_again, "--out", "again") == (0, "again: step 4 of sums\n")
    same_files(tmp_path / "again", run_dir / "global_step_4" / "huggingface")
    early, late = (load_file(tmp_path / name / "model.safetensors") for name in ("rebuilt", "again"))
    assert any(not torch.equal(early[name], late[name]) for name in early)
    assert list(tmp_path.glob(".*")) == []


def as_state_only(run_dir, home):
    """The last checkpoint of a run as if it had been saved without its model."""
    import hashlib

    copy = home / "copy" / "global_step_4"
    shutil.copytree(run_dir / "global_step_4", copy, ignore=shutil.ignore_patterns("huggingface"))
    shutil.copy(run_dir / "config.yaml", home / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"] = {name: facts for name, facts in manifest["files"].items() if name.startswith("state/")}
    content = json.dumps(manifest).encode()
    (copy / "manifest.json").write_bytes(content)
    (copy / "manifest.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  manifest.json\n")
    return copy


def test_a_run_directory_stands_for_its_newest_whole_checkpoint(full, export, tmp_path):
    damaged = shutil.copytree(full, tmp_path / "sums")
    with (damaged / "global_step_4" / "state" / "rank_00000.safetensors").open("r+b") as file:
        file.write(b"????")
    assert export(damaged, "--out", "out") == (0, "out: step 3 of sums\n")
    same_files(tmp_path / "out", full / "global_step_3" / "huggingface")
    code, told = export(damaged / "global_step_4", "--out", "other")
    assert code == 2 and "is not what was written" in told and not (tmp_path / "other").exists()
    for checkpoint in damaged.glob("global_step_*"):
        shutil.rmtree(checkpoint)
    assert export(damaged, "--out", "last") == (0, "last: step 4 of sums\n")
    same_files(tmp_path / "last", full / "global_step_4" / "huggingface")


def test_a_model_without_checkpoints_has_the_step_its_weights_are_of(full, export, tmp_path):
    """With trainer.load_best_at_end that is not the last one."""
    best = shutil.copytree(full, tmp_path / "sums", ignore=shutil.ignore_patterns("global_step_*"))
    facts = json.loads((best / "run.json").read_text())
    assert (facts["exported_step"], facts["published_step"]) == (4, 4)
    (best / "run.json").write_text(json.dumps(facts | {"published_step": 3}))
    assert export(best) == (0, "sums-step3: step 3 of sums\n")
    assert export(best, "--format", "pt") == (0, "sums-sft_step3.pt: step 3 of sums\n")


def test_another_dtype_comes_from_the_weights_as_they_were_trained(full, export, tmp_path):
    assert export(full, "--dtype", "fp32", "--out", "fp32")[0] == 0
    exact, rounded = (load_file(d / "model.safetensors") for d in (tmp_path / "fp32", full))
    name = "model.norm.weight"
    assert exact[name].dtype == torch.float32 and rounded[name].dtype == torch.bfloat16
    assert torch.equal(exact[name].bfloat16(), rounded[name])
    assert not torch.equal(exact[name], rounded[name].float()), "not the rounded ones in a wider dtype"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "fp32", dtype="auto").dtype == torch.float32
    assert export(full / "global_step_3", "--dtype", "fp16", "--out", "fp16")[0] == 0  # SAMPLER
    assert {tensor.dtype for tensor in load_file(tmp_path / "fp16" / "model.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize("step", [2, 4])
def test_an_adapter_alone_is_for_peft(lora, export, tmp_path, step):
    assert export(lora / f"global_step_{step}", "--format", "adapter", "--out", "adapter")[0] == 0
    assert export(lora / f"global_step_{step}", "--out", "merged")[0] == 0
    base = AutoModelForCausalLM.from_pretrained(lora.parent / "model")
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=0, atol=1e-5)
    same_files(tmp_path / "merged" / "lora_adapter", tmp_path / "adapter")


def test_a_full_run_has_no_adapter(full, export, tmp_path):
    code, told = export(full, "--format", "adapter")
    assert code == 2 and "sums trained all weights (model.lora_rank=0), no adapter; use --format hf" in told
    assert list(tmp_path.iterdir()) == []
    assert export(full, "--format", "adapter", "--dtype", "bf16")[0] == 2


@pytest.mark.parametrize("run", ["full", "lora"])
def test_a_pt_file_holds_what_is_documented(run, export, tmp_path, request):
    run_dir = request.getfixturevalue(run)
    assert export(run_dir, "--format", "pt") == (0, "sums-sft_final.pt: step 4 of sums\n")
    assert export(run_dir / "global_step_2", "--format", "pt") == (0, "sums-sft_step2.pt: step 2 of sums\n")
    content = torch.load(tmp_path / "sums-sft_final.pt", weights_only=True)
    assert content.keys() == {"model_state", "optimizer_state", "config", "step", "run_name"}
    assert (content["step"], content["run_name"]) == (4, "sums")
    assert content["config"]["trainer"]["total_training_steps"] == 4
    model = AutoModelForCausalLM.from_pretrained(run_dir.parent / "model", dtype=torch.float32)
    model.load_state_dict(content["model_state"])  # strict: every name, the tied one as well
    trained = AutoModelForCausalLM.from_pretrained(run_dir, dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(trained), rtol=0, atol=2e-2 if run == "full" else 1e-5)
    optimizer = content["optimizer_state"]
    assert optimizer["updates"] == 4 and optimizer["exp_avg"].keys() == optimizer["exp_avg_sq"].keys()
    assert any(name.endswith("lora_A.default.weight") for name in optimizer["exp_avg"]) == (run == "lora")
    sampled = run_dir / "global_step_3"
    assert export(sampled, "--format", "pt") == (0, "sums-sft_step3.pt: step 3 of sums\n")
    content = torch.load(tmp_path / "sums-sft_step3.pt", weights_only=True)
    assert content["optimizer_state"] == {}
    model.load_state_dict(content["model_state"])  # strict here, too
    stored = AutoModelForCausalLM.from_pretrained(sampled / "huggingface", dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(stored), rtol=0, atol=0)


def test_what_is_there_is_never_overwritten(full, export, tmp_path):
    (tmp_path / "there").mkdir()
    code, told = export(full, "--out", "there")
    assert code == 2 and "there exists; give another --out" in told
    code, told = export(full, "--out", "no/where")
    assert code == 2 and "is no directory; make it first" in told


def test_nothing_stays_of_an_export_that_failed(full, export, tmp_path, monkeypatch):
    monkeypatch.setattr("sft.model.write.weights.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    for form in ("hf", "pt"):
        code, told = export(full, "--format", form, "--dtype", "fp32")
        assert code == 2 and "no room for the model" in told
    assert list(tmp_path.iterdir()) == []


def test_the_base_model_must_be_the_one_that_was_trained(full, lora, export, tmp_path):
    code, told = export(full / "global_step_2", "--base", lora.parent / "model")
    assert code == 2 and "is another model than the one sums was trained from" in told
    moved = shutil.copytree(full.parent / "model", tmp_path / "moved")
    assert export(full / "global_step_2", "--base", moved, "--out", "out")[0] == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_a_run_whose_template_wants_a_variable_ends_with_a_model_and_can_be_exported(export, tmp_path):
    model = tiny_model_dir(tmp_path / "model")
    template = "{{ raise_exception('no language') if language != 'Latin' }}" + CHATML
    tiny_tokenizer(template).save_pretrained(model)
    run_dir = train(tmp_path, model, "+data.apply_chat_template_kwargs={language: Latin}")
    for step in (3, 4):
        assert export(run_dir / f"global_step_{step}", "--out", f"out{step}", "--dtype", "fp32")[0] == 0


def test_a_template_that_has_changed_since_training_is_refused(export, tmp_path):
    file = tmp_path / "own.jinja"
    file.write_text(CHATML)
    run_dir = train(tmp_path, tiny_model_dir(tmp_path / "model"), f"data.chat_template={file}")
    file.write_text(CHATML.replace("user", "person") + "{# now another #}")
    code, told = export(run_dir / "global_step_2", "--out", "out")
    assert code == 2 and f"data.chat_template={file}" in told and "another template now than the one sums" in told
    file.write_text(CHATML)
    assert export(run_dir / "global_step_2", "--out", "out")[0] == 0


@pytest.mark.parametrize("source", ["nowhere", "."])
def test_where_there_is_nothing_to_export_it_says_what_to_give(source, export):
    code, told = export(source)
    assert code == 2 and told.startswith("error: ") and "global_step_N" in told


def test_help_comes_without_torch():
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sft.export", "--help"],
        env=clean_environment(), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "--format {hf,adapter,pt}" in done.stdout and time.monotonic() - began < 20
    assert " torch\n" not in done.stderr


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_was_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, kind):
    disk = Disk(monkeypatch)

    def write(aside):
        if kind == "file":
            aside.write_text("a")
        else:
            (aside / "lora_adapter").mkdir(parents=True)
            (aside / "lora_adapter" / "model.safetensors").write_text("a")

    _whole_or_absent(tmp_path / "out", write)
    assert [(target, missing) for _, target, missing in disk.renames] == [("out", [])]
    assert disk.events[-1] == f"fsync {tmp_path.name}"
