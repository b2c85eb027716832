"""GSM8K for real: preprocess, train single-turn and multi-turn, reload, generate. The documented run, shortened."""

import csv
import json
import shutil
import subprocess
import sys

import pytest

from tests.launch import REPOSITORY, clean_environment, read_metrics, succeed

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def gsm8k(shared, tmp_path_factory):
    """(model directory with the real minimind tokenizer, directory with train.parquet and test.parquet)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

    home = tmp_path_factory.mktemp("gsm8k")
    preprocess = [sys.executable, "-m", "data_preprocess.gsm8k", "--local_dataset_path", str(shared / "data" / "gsm8k")]
    done = subprocess.run(
        [*preprocess, "--local_dir", str(home)], env=clean_environment(), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shutil.copytree(shared / "tokenizers" / "minimind", home / "model")
    tokenizer = AutoTokenizer.from_pretrained(home / "model")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=6400,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(home / "model")
    return home


SINGLE_TURN = [
    "data.prompt_key=extra_info",
    "data.response_key=extra_info",
    "data.prompt_dict_keys=['question']",
    "+data.response_dict_keys=['answer']",
]
MULTI_TURN = ["data.multiturn.enable=true", "use_remove_padding=true"]


@pytest.mark.parametrize("keys", [SINGLE_TURN, MULTI_TURN], ids=["single_turn", "multi_turn"])
def test_loss_falls_and_the_directory_generates(gsm8k, tmp_path, keys):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    succeed(
        [
            f"data.train_files={gsm8k / 'train.parquet'}",
            f"data.val_files={gsm8k / 'test.parquet'}",
            "data.val_max_samples=64",
            f"data.cache_dir={gsm8k / 'cache'}",
            f"model.partial_pretrain={gsm8k / 'model'}",
            f"trainer.default_local_dir={tmp_path / 'run'}",
            "data.train_batch_size=16",
            "data.micro_batch_size=4",
            "optim.lr=3e-3",
            "trainer.total_training_steps=12",
            *keys,
        ],
        ranks=2,
        cwd=tmp_path,
    )
    metrics = read_metrics(tmp_path / "run")
    losses = [line["train/loss"] for line in metrics]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert metrics[-1]["val/loss"] < losses[0]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert model.dtype == torch.bfloat16
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2 + 2?"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**prompt, max_new_tokens=5).shape[1] > prompt["input_ids"].shape[1]


def test_csv_json_and_messages_have_the_same_losses(shared, gsm8k, run_all, tmp_path):
    """The same 16 rows in the three shapes that people bring; nothing says which shape a file has."""
    lines = (shared / "data" / "gsm8k" / "train.jsonl").read_text().splitlines()[:16]
    rows = [{key: json.loads(line)[key] for key in ("question", "answer")} for line in lines]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    said = [("user", "question"), ("assistant", "answer")]
    chats = [{"messages": [{"role": role, "content": row[key]} for role, key in said]} for row in rows]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    shapes = [
        [
            f"data.train_files={tmp_path / name}",
            f"data.cache_dir={tmp_path / 'cache'}",
            f"model.partial_pretrain={gsm8k / 'model'}",
            "data.train_batch_size=8",
            "optim.lr=1e-3",
            "trainer.total_epochs=2",
            "trainer.logger=jsonl",
        ]
        for name in ("rows.csv", "rows.json", "chats.jsonl")
    ]
    table, array, conversations = (
        [(line["train/loss"], line["train/grad_norm"]) for line in run] for run in run_all(shapes, 1)
    )
    assert len(table) == 4
    assert table == array == conversations
