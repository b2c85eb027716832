"""Small assets made on the spot: a byte-level tokenizer trained here, and models of random weights around it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

CORPORA = ("gsm8k", "prepare_informal_math", "multiturn", "alpaca", "dolly", "openorca", "jsonl")
"""The programs of data_preprocess."""

CORPUS = """\
Which of the numbers is the largest? First add the apples, then take away the pears: 12 + 30 = 42, and 42 - 7 = 35.
The assistant answers the question of the user, step by step, and ends with the result. "Why?", asked the system.
def total(prices: list[int]) -> int:
    return sum(price for price in prices if price > 0)
She said: there were 1,000 people in the street that day; half of them were singing, the others only listened.
"""


def tiny_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of some 450 tokens, the same in every process. A new object every time."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_tiny_backend()),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


@cache
def _tiny_backend() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Newlines merge with what follows them, as in large vocabularies: the hard case for masks.
    tokenizer.train_from_iterator([CORPUS] * 20 + ["\n\n\n\n", "\n\n", "assistant\n\n"] * 50, trainer)
    return tokenizer.to_str()


def tiny_model_dir(
    path: Path,
    *,
    kind: str = "qwen3",
    tie: bool = True,
    dtype: str = "float32",
    seed: int = 0,
    **config_overrides: Any,
) -> Path:
    """Writes a Hugging Face model of random weights and the tiny tokenizer into `path`, and returns it.

    kind: qwen3, qwen3_moe, qwen2, llama, gemma2 or gpt_oss. Two layers of width 64, 4 heads of 16 on 2 key-value heads.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        Gemma2Config,
        GptOssConfig,
        LlamaConfig,
        Qwen2Config,
        Qwen3Config,
        Qwen3MoeConfig,
    )

    tokenizer = tiny_tokenizer()
    sizes = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tie,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    kinds = {
        "qwen3": Qwen3Config,
        "qwen3_moe": Qwen3MoeConfig,
        "qwen2": Qwen2Config,
        "llama": LlamaConfig,
        "gemma2": Gemma2Config,
        "gpt_oss": GptOssConfig,
    }
    config = kinds[kind](**sizes | config_overrides)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def attention_on_cpu(config: Any, *, packed: bool, wanted: str = "auto") -> Any:
    """The attention that a run on the CPU would choose for a model."""
    from sft.model.attention import Available, choose_attention

    return choose_attention(config, wanted=wanted, packed=packed, half=False, here=Available("cpu"))


def boundaries(*lengths: int) -> dict[str, Any]:
    """What a model of packed rows is told of samples of these lengths: see Batch.boundaries."""
    import torch

    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return {"sample_lengths": lengths, "cu_seqlens": ends, "max_seqlen": max(lengths)}


def base_model_dir(path: Path, **options: Any) -> Path:
    """As `tiny_model_dir`, of a model that was never chatted with: no template, no <|im_start|>, no row to spare."""
    tiny_model_dir(path, vocab_size=len(tiny_tokenizer()), **options)
    (path / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((path / "tokenizer_config.json").read_text())
    for key in ("chat_template", "additional_special_tokens", "extra_special_tokens"):
        config.pop(key, None)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|other|>"))
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes one JSON object per line into `path`, and returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path
