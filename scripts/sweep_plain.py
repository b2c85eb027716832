"""Train a model in a plain loop, one sample at a time, without any code of the trainer: what it is compared with."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from sweep_models import ROWS
from transformers import AutoConfig, AutoTokenizer

TOKEN_KINDS = ("token_type_ids", "mm_token_type_ids")
"""What tells some models which tokens are images: 0 is text."""

STEPS, LR, BETAS, CLIP = 3, 1e-3, (0.9, 0.95), 1.0


@dataclass(frozen=True)
class Course:
    """How training went: loss and gradient norm of every step, and the loss of the model it ended with."""

    losses: list[float]
    grad_norms: list[float]
    before: float
    after: float


def samples_of(directory: Path) -> list[tuple[torch.Tensor, int]]:
    """Return (token ids [1, L], how many of them are the prompt) of every row."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    samples = []
    for row in ROWS:
        question = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        ids = [tokenizer(text).input_ids for text in (prompt, f"{row['response']}{tokenizer.eos_token}")]
        samples.append((torch.tensor([ids[0] + ids[1]]), len(ids[0])))
    return samples


def summed_ce(model: Any, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Return the cross entropy of a sample, summed over the tokens behind its prompt."""
    sees = model.config.get_text_config() is not model.config  # to GPT-2, token 0 would be a kind of its own
    asked = [name for name in TOKEN_KINDS if sees and name in inspect.signature(model.forward).parameters]
    kinds = {name: torch.zeros_like(ids) for name in asked}
    logits = model(input_ids=ids, use_cache=False, **kinds).logits[0, prompt - 1 : -1]
    return F.cross_entropy(logits.float(), ids[0, prompt:], reduction="sum")


@torch.no_grad()
def loss_of(model: Any, samples: list[tuple[torch.Tensor, int]]) -> float:
    """Return the loss of a model over all samples, without dropout."""
    model.eval()
    supervised = sum(ids.shape[1] - prompt for ids, prompt in samples)
    return sum(summed_ce(model, *sample).item() for sample in samples) / supervised


def open_model(directory: Path, adapter: Path | None = None) -> Any:
    """Open a model in fp32, with a peft adapter around it if one is given. Raises ValueError for what is left out."""
    named = (AutoConfig.from_pretrained(directory).architectures or ["AutoModelForCausalLM"])[0]
    loaded: Any = getattr(transformers, named).from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    if left_out := {what: sorted(map(str, names))[:4] for what, names in report.items() if names}:
        raise ValueError(f"from_pretrained({directory.name}): {left_out}")
    if adapter is None:
        return model
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    if said := [str(warning.message) for warning in caught if "missing adapter keys" in str(warning.message)]:
        raise ValueError(f"PeftModel.from_pretrained: {said[0][:200]}")
    return model


def train_plainly(directory: Path, adapter: Path | None = None) -> Course:
    """Train all rows STEPS times in fp32, all of them in every step, with AdamW without weight decay."""
    model, samples = open_model(directory, adapter), samples_of(directory)
    supervised = sum(ids.shape[1] - prompt for ids, prompt in samples)
    before = loss_of(model, samples)
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=BETAS, weight_decay=0.0)
    losses, grad_norms = [], []
    for _ in range(STEPS):
        loss = 0.0
        for sample in samples:
            part = summed_ce(model, *sample) / supervised
            part.backward()
            loss += part.item()
        losses.append(loss)
        grad_norms.append(torch.nn.utils.clip_grad_norm_(trained, CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
    return Course(losses, grad_norms, before, loss_of(model, samples))
