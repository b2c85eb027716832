"""Input that cannot be used: one message with a way out, from rank 0, exit code 2, no traceback, no hang."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft.errors import ABOVE
from tests.assets import base_model_dir, tiny_model_dir, write_jsonl
from tests.launch import REPOSITORY, read_metrics, succeed, train


def bad_jsonl(home, text):
    (home / "bad.jsonl").write_text(text)
    return [f"data.train_files={home / 'bad.jsonl'}"]


def wrong_column(home):
    return bad_jsonl(home, '{"input": "a", "label": "b"}\n')


def not_json(home):
    return bad_jsonl(home, '{"question": "a", "answer": "b"}\n{"question": "a", answer: "b"}\n')


def empty_file(home):
    return bad_jsonl(home, "")


def too_long(home):
    return ["data.max_length=16"]


def nothing_left(home):
    return ["data.max_length=4", "data.truncation=right"]


def no_assistant(home):
    write_jsonl(home / "bad.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}])
    return [f"data.train_files={home / 'bad.jsonl'}", "data.multiturn.enable=true", "data.val_files=null"]


def nothing_trained(home):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no", "train": False}]
    write_jsonl(home / "bad.jsonl", [{"messages": messages}])
    return [f"data.train_files={home / 'bad.jsonl'}", "data.val_files=null"]


def bad_weight(home):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no", "weight": -1}]
    write_jsonl(home / "bad.jsonl", [{"messages": messages}])
    return [f"data.train_files={home / 'bad.jsonl'}", "data.val_files=null"]


def unknown_chat_template(home):
    return ["data.chat_template=chatlm"]


def lora_with_new_tokens(home):
    return [f"model.partial_pretrain={base_model_dir(home / 'model')}", "model.lora_rank=4"]


def impossible_attention(home):
    """Said before the data is read, which here would be an error too."""
    return [*empty_file(home), "model.attn_implementation=varlen"]


def edited_weights(home, edit, **model_options):
    model = tiny_model_dir(home / "model", **model_options)
    weights = load_file(model / "model.safetensors")
    edit(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return [f"model.partial_pretrain={model}"]


def missing_weight(home):
    return edited_weights(home, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))


def unexpected_weight(home):
    return edited_weights(home, lambda weights: weights.update({"model.extra.weight": torch.zeros(2)}))


def misshaped_weight(home):
    return edited_weights(home, lambda weights: weights.update({"model.norm.weight": torch.zeros(63)}))


CASES = [
    (wrong_column, ["bad.jsonl:1", "'question'", "['input', 'label']", "data.prompt_key"]),
    (not_json, ["bad.jsonl:2", "not JSON", "answer:"]),
    (empty_file, ["bad.jsonl is empty"]),
    (too_long, ["data.truncation=error", "10 of 10 samples", "data.max_length=16", "train.jsonl:1", "drop"]),
    (nothing_left, ["no sample is left", "10 dropped because truncation left nothing to train"]),
    (no_assistant, ["bad.jsonl:1", "no assistant message"]),
    (nothing_trained, ["no sample is left", "data.train_on"]),
    (bad_weight, ["bad.jsonl:1: messages[1].weight must be a finite number of at least 0, found -1"]),
    (unknown_chat_template, ["data.chat_template='chatlm'", "did you mean chatml?", "instruction_response"]),
    (lora_with_new_tokens, ["<|im_start|>", "model.lora_rank=4", "data.chat_template=instruction_response"]),
    (
        impossible_attention,
        ["model.attn_implementation=varlen needs CUDA; possible for qwen3 on this cpu device: auto, blocked, sdpa."],
    ),
    (missing_weight, ["missing: model.layers.1.mlp.up_proj.weight"]),
    (unexpected_weight, ["unexpected: model.extra.weight"]),
    (misshaped_weight, ["model.norm.weight: the file has [63], the model [64]"]),
]


@pytest.mark.parametrize(("make", "fragments"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_one_message_and_exit_code_2(base, tmp_path, make, fragments):
    done = train([*base, *make(tmp_path), f"trainer.default_local_dir={tmp_path / 'run'}"], ranks=0, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    message = done.stderr[done.stderr.index("error: ") :]
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("make", [wrong_column, missing_weight])
def test_under_torchrun_the_message_comes_once_and_nobody_waits(base, tmp_path, make):
    done = train([*base, *make(tmp_path), f"trainer.default_local_dir={tmp_path / 'run'}"], ranks=2, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "Traceback (most recent call last):\n  File" not in done.stderr.split("torch/distributed/elastic")[0]
    assert done.stderr.count(f"traceback : {ABOVE}") == 1, "torchrun's last lines lead back to the message"


@pytest.mark.parametrize("knob", ["model.partial_pretrain", "data.train_files", "data.val_files"])
def test_ranks_that_read_different_things_are_told_which(base, tmp_path, knob):
    """Their weights would be mixed without a word, and their validation would count what nobody computed."""
    for rank in range(2):
        tiny_model_dir(tmp_path / f"model.partial_pretrain_{rank}", seed=rank)
        for name in ("train", "val"):
            rows = [{"question": f"{k} + {rank}?", "answer": f"{k + rank}"} for k in range(10)]
            write_jsonl(tmp_path / f"data.{name}_files_{rank}", rows).rename(
                tmp_path / f"data.{name}_files_{rank}.jsonl"
            )
    suffix = "" if knob.startswith("model") else ".jsonl"
    overrides = [*base, f"{knob}={tmp_path}/{knob}_RANK{suffix}", f"data.cache_dir={tmp_path}/cache_RANK"]
    overrides.append(f"trainer.default_local_dir={tmp_path / 'run'}")
    done = train(overrides, ranks=2, cwd=tmp_path, module="tests.dist.unlike", timeout_s=60)
    assert done.returncode != 0
    assert done.stderr.count(f"error: the ranks do not read what rank 0 reads: {knob} (rank 1).") == 1, done.stderr


@pytest.mark.parametrize(
    ("mistake", "told"), [("optim.rl=1", "1 problem in the configuration"), ("data.max_length=16", "\nerror: ")]
)
def test_torchrun_does_not_restart_a_run_that_would_meet_the_same_mistake(base, tmp_path, mistake, told):
    done = train([*base, mistake], ranks=2, cwd=tmp_path, torchrun=["--max-restarts=3"])
    assert done.returncode != 0
    assert done.stderr.count(told) == 1, done.stderr


def test_a_bug_of_ours_shows_its_traceback_once_ends_all_ranks_and_is_not_restarted(base, tmp_path):
    overrides = [*base, "trainer.total_training_steps=1", f"trainer.default_local_dir={tmp_path / 'run'}"]
    done = train(
        overrides,
        ranks=2,
        cwd=tmp_path,
        module="tests.dist.with_a_bug",
        env={"FAULTY": "1"},
        torchrun=["--max-restarts=3"],
    )
    assert done.returncode == 1, done.stderr
    assert "return take(None if" in done.stderr, "the line where it happened"
    assert (
        done.stderr.count("AttributeError: 'NoneType' object has no attribute 'named_parameters'\nerror on rank 1: ")
        == 1
    )
    assert done.stderr.count("this is a bug, not your input: saving ") == 1


@pytest.mark.parametrize("mistake", ["data.train_batch_size=3", "model.attn_implementation=flex"])
def test_the_message_comes_although_rank_0_is_the_last_to_find_the_mistake(base, tmp_path, mistake):
    """At the first exit of any rank torchrun ends all of them, also one that is still importing."""
    late = "import os, time\ntime.sleep(3 * (os.environ.get('LOCAL_RANK') == '0'))\n"
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "sitecustomize.py").write_text(late)
    overrides = [*base, mistake, f"trainer.default_local_dir={tmp_path / 'run'}"]
    done = train(overrides, ranks=2, cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path / 'late'}:{REPOSITORY}"})
    assert done.returncode == 1
    assert done.stderr.count(mistake) == 1, done.stderr


def test_a_step_that_is_not_finite_updates_nothing_and_five_in_a_row_stop(base, tmp_path):

    def poison(weights):
        weights["model.norm.weight"].fill_(float("nan"))

    overrides = [*base, *edited_weights(tmp_path, poison), f"trainer.default_local_dir={tmp_path / 'run'}"]
    done = train([*overrides, "optim.lr_scheduler=cosine", "trainer.total_training_steps=8"], ranks=0, cwd=tmp_path)
    assert done.returncode == 2
    assert "5 steps in a row" in done.stderr and "skipped_steps.jsonl" in done.stderr
    metrics = read_metrics(tmp_path / "run")
    assert [line["skipped"] for line in metrics] == [True] * 5
    assert {line["train/lr"] for line in metrics} == {metrics[0]["train/lr"]}, "the schedule must not move"
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped_steps.jsonl").read_text().splitlines()]
    assert [len(record["rows"]) for record in skipped] == [4, 4, 2, 4, 4]
    assert skipped[0]["rows"][0].startswith("train.jsonl:")


def test_one_poisoned_row_costs_one_step_and_training_goes_on(base, tmp_path):
    """Only one row holds "§", whose token has an infinite embedding; both ranks skip its step, and only that."""
    from tests.assets import tiny_tokenizer

    rows = [{"question": f"What is {k}?" + " §" * (k == 5), "answer": f"{k}."} for k in range(10)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    token = tiny_tokenizer()(" §")["input_ids"][-1]

    def poison(weights):
        weights["model.embed_tokens.weight"][token] = float("inf")

    overrides = [*base, *edited_weights(tmp_path, poison, tie=False), f"data.train_files={tmp_path / 'train.jsonl'}"]
    succeed(
        [*overrides, "trainer.total_epochs=1", f"trainer.default_local_dir={tmp_path / 'run'}"], ranks=2, cwd=tmp_path
    )
    metrics = read_metrics(tmp_path / "run")
    assert [line.get("skipped", False) for line in metrics].count(True) == 1
    skipped = json.loads((tmp_path / "run" / "skipped_steps.jsonl").read_text())
    assert "train.jsonl:6" in skipped["rows"]
