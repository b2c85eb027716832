"""What benchmarks work on, made from a seed: conversations, their tokenizer, and the rivals' virtual environment."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

SEED = 1
VOCAB_SIZE = 6400
RIVALS = ("trl==1.16.*", "datasets", "peft")
"""What they need beside our own torch and transformers."""

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' %}{% generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}{{- '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

NAMES = ("Ada", "Bela", "Chidi", "Dora", "Emre", "Femi", "Gita", "Hana", "Ines", "Jun")
THINGS = ("apples", "tickets", "stamps", "marbles", "books", "pencils", "shells", "coins", "cards", "buttons")
DEEDS = ("buys", "finds", "is given", "loses", "sells", "gives away")


def make_pair(rng: random.Random) -> list[dict[str, str]]:
    """Return a word problem of some 60 words and its worked answer of some 100."""
    name, thing, total = rng.choice(NAMES), rng.choice(THINGS), rng.randrange(500, 1000)
    told, worked = [f"{name} has {total} {thing}."], [f"{name} starts with {total} {thing}."]
    for day in range(1, rng.randrange(4, 8)):
        deed, count = rng.choice(DEEDS), rng.randrange(2, 60)
        after = total + count if DEEDS.index(deed) < 3 else total - count
        sign = "+" if after > total else "-"
        told.append(f"On day {day}, {name} {deed} {count} {thing} at the {rng.choice(NAMES)} street market.")
        worked.append(
            f"On day {day} the number changes by {count}, so that {total} {sign} {count} = {after} are there."
        )
        total = after
    question = f"{' '.join(told)} How many {thing} does {name} have in the end?"
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "\n".join([*worked, f"#### {total}"])},
    ]


def make_rows(path: Path, count: int, turns_of_every_fifth: int = 5, *, pairs: int = 1) -> None:
    """Conversations of `pairs` questions and answers, every fifth of more: by default 339 tokens in the mean."""
    rng = random.Random(SEED)
    with path.open("w") as file:
        for n in range(count):
            turns = pairs * turns_of_every_fifth if n % 5 == 4 else pairs
            messages = [message for _ in range(turns) for message in make_pair(rng)]
            file.write(json.dumps({"messages": messages}) + "\n")


def make_tokenizer(path: Path, rows: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(rows.read_text().splitlines()[:2000], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    ).save_pretrained(path)


def make_model(path: Path, architecture: dict[str, Any], device: str = "cpu") -> None:
    """Write a Qwen3 of random weights, in bf16 as most models are; its stop token is the tokenizer's.

    device: where the weights are drawn; of billions, a CPU draws for minutes
    """
    settings: dict[str, Any] = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None, "tie_word_embeddings": True}
    config = Qwen3Config(**settings | architecture)
    torch.manual_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(path)
    del model
    if device != "cpu":
        torch.cuda.empty_cache()  # for those who will train it


def make_venv(path: Path) -> Path:
    """Return the Python of the rivals' environment; made by pip, which needs a network, unless it is whole already.

    It sees our own packages: rivals run with the same torch and transformers, and nothing is loaded twice.
    """
    python, ready = path / "bin" / "python", path / "ready"
    if not ready.exists():  # a cut may have left a part of it
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(path)], check=True)
        packages = path / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "-q", *RIVALS], check=True)
        ready.touch()
    return python
