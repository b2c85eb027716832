"""A whole supervised fine-tuning run in two minutes on two CPU cores, without a download.

    python scripts/quickstart.py prepare      # quickstart/data, quickstart/model
    torchrun --standalone --nproc_per_node=2 -m sft.fsdp_sft_trainer +experiment=quickstart
    python scripts/quickstart.py score        # exact match on numbers the model never saw

The task is to write the numbers 0..9999 in words: too many to learn by heart from part of them, easy to check.
Everything is made here: rows, a byte-level BPE tokenizer with a ChatML template, and a random Qwen3 model of about
0.6 million parameters, so that the trained directory is an ordinary Hugging Face model. The same files come out every
time, byte for byte: preparing again does not disturb a run that can resume.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

SEED = 1
NUMBERS = 10_000
VAL_ROWS = 200  # the loss the trainer watches
HELDOUT_ROWS = 200  # exact match at the end; in neither of the other two files
PASS_MARK = 0.95

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCAB_SIZE = 384  # 256 bytes, 3 special tokens, and merges enough for every word of the task
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def in_words(number: int) -> str:
    """Return the English words of 0 <= number < 10,000, as in "four thousand two hundred seventy-one"."""
    if number < 20:
        return ONES[number]
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = f" {in_words(number % size)}" if number % size else ""
            return f"{ONES[number // size]} {name}{rest}"
    return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")


def make_rows() -> dict[str, list[dict[str, str]]]:
    """Every number once, shuffled and dealt into the rows of train, val and heldout."""
    numbers = list(range(NUMBERS))
    random.Random(SEED).shuffle(numbers)
    rows = [{"prompt": f"Write {number} in words.", "response": in_words(number)} for number in numbers]
    held_back = VAL_ROWS + HELDOUT_ROWS
    return {"val": rows[:VAL_ROWS], "heldout": rows[VAL_ROWS:held_back], "train": rows[held_back:]}


def save_tokenizer(model_dir: Path, texts: list[str]) -> None:
    """Train a byte-level BPE on `texts` and write it as a Hugging Face tokenizer with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    # One token per digit: merged digits would make most four-digit numbers words of their own, never to be generalised.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(model_dir / "tokenizer.json"))
    # Written by hand, because save_pretrained names a class that only the newest transformers knows.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (model_dir / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def save_model(model_dir: Path) -> int:
    """Write a random Qwen3 model (fp32, tied embeddings) for the tokenizer in `model_dir`; returns its parameters."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(model_dir)
    return model.num_parameters()


def prepare(root: Path) -> None:
    """Make `root`/data (train, val and heldout .jsonl) and `root`/model."""
    rows = make_rows()
    data_dir, model_dir = root / "data", root / "model"
    data_dir.mkdir(parents=True, exist_ok=True)
    model_dir.mkdir(parents=True, exist_ok=True)
    for name, part in rows.items():
        (data_dir / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    chat_words = ["user\n", "assistant\n", "system\n"]
    save_tokenizer(model_dir, [text for row in rows["train"] for text in row.values()] + chat_words * 1000)
    parameters = save_model(model_dir)
    print(f"{data_dir}: " + ", ".join(f"{len(part):,} {name}" for name, part in rows.items()) + " rows")
    print(f"{model_dir}: Qwen3, {parameters:,} parameters, random")


def answer(model_dir: Path, prompts: list[str], batch_size: int = 50) -> list[str]:
    """Greedy answers of the model in `model_dir`, one per prompt, in order."""
    from rich.progress import track

    from sft.generate.answer import chat_prompt, open_model
    from sft.model.answer import Sampling
    from sft.model.answer import answer as answer_with

    model, tokenizer = open_model(model_dir)
    chats = [chat_prompt(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    return answer_with(
        model,
        tokenizer,
        chats,
        Sampling(max_new_tokens=32),
        batch_size=batch_size,
        progress=lambda starts, total: track(starts, description="generating", total=total),
    )


def score(root: Path) -> float:
    """Exact match, 0..1, of the trained model in `root`/run on the held-out numbers; prints misses and next steps."""
    run_dir = root / "run"
    if not (run_dir / "config.json").exists():
        raise ValueError(f"{run_dir} holds no trained model yet; train first: see the top of {Path(__file__).name}")
    rows = [json.loads(line) for line in (root / "data" / "heldout.jsonl").read_text().splitlines()]
    answers = answer(run_dir, [row["prompt"] for row in rows])
    misses = [(row, text) for row, text in zip(rows, answers, strict=True) if text != row["response"]]
    exact_match = 1 - len(misses) / len(rows)
    for row, text in misses[:5]:
        print(f"missed: {row['prompt']} expected {row['response']!r}, got {text!r}")
    print(f"held-out exact match: {exact_match:.3f}")
    print(f"loss curve: {run_dir / 'loss.png'}")
    print(f'use it: AutoModelForCausalLM.from_pretrained("{run_dir}")')
    return exact_match


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Numbers to words: a fine-tuning run on two CPU cores.")
    parser.add_argument("command", choices=["prepare", "score"])
    parser.add_argument("--dir", type=Path, default=Path("quickstart"), help="where the files go (default: quickstart)")
    arguments = parser.parse_args(argv)
    if arguments.command == "prepare":
        prepare(arguments.dir)
        return 0
    try:
        return 0 if score(arguments.dir) >= PASS_MARK else 1
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
