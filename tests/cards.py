"""What a run says of itself on the card of its model."""

from __future__ import annotations

from pathlib import Path

from sft.track.card import CardFacts

FACTS = CardFacts(
    name="me/tiny",
    opens_as="me/tiny",
    opened_by="AutoModelForCausalLM",
    base_model="Qwen/Qwen2.5-0.5B",
    datasets=["org/chats:train", "org/code/python:train", "train.jsonl"],
    data={"train": [{"file": "train.jsonl", "rows": 7473, "hash": "abc123"}], "val": []},
    template="`chatml`",
    template_hash="def456",
    step=40,
    total_steps=100,
    epochs=1.5,
    samples=12345,
    tokens=678901,
    train_loss=(2.5, 1.25),
    metrics={"val/loss": 1.3},
    settings={"optim.lr": 1e-5, "data.balance_dp_token": False},
    versions={"torch": "2.13.0", "peft": None},
    command=["torchrun", "-m", "sft.fsdp_sft_trainer", f"data.train_files={Path.home()}/rows.jsonl"],
    world_size=8,
    has_curve=True,
    has_adapter=False,
)
