"""The card of a model: what it says, and what it keeps to itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from sft.track.card import is_hub_id, is_untouched, model_card, without_home
from sft.train.result import command_of, settings_of, template_name
from tests.cards import FACTS


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_the_page_says_what_was_done() -> None:
    card = model_card(FACTS)
    assert front_matter(card) == {
        "base_model": "Qwen/Qwen2.5-0.5B",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sft", "fsdp-sft-trainer"],
        "datasets": ["org/chats", "org/code"],
    }
    for told in (
        "step 40 of 100, 1.50 epochs",
        "| training loss, first -> last | 2.5000 -> 1.2500 |",
        "| `val/loss` | 1.3000 |",
        "| train | `train.jsonl` | 7,473 | `abc123` |",
        "`chatml`, sha256 `def456`",
        "| `optim.lr` | `1e-05` |",
        "| `data.balance_dp_token` | `false` |",
        "| torch | 2.13.0 |",
        "![training and validation loss](loss.png)",
        'from_pretrained("me/tiny")',
    ):
        assert told in card, told
    assert "peft" not in card


def test_names_are_shown_as_they_are_and_obeyed_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SEKRETENV")
    file = {"file": "a`b\x1b]0;t\x07.jsonl", "rows": 1, "hash": "h"}
    command = ["python", "```", "<img src=x>", "hf_SEKRETENV"]
    card = model_card(replace(FACTS, name="x <b>`y`", data={"train": [file]}, command=command, settings={"k": "a``b"}))
    assert "\n# x \\<b\\>\\`y\\`\n" in card
    assert "| ``a`b␛]0;t␇.jsonl`` |" in card and "| `k` | ```a``b``` |" in card
    assert "\n````\npython ``` <img src=x> ***\n````\n" in card
    assert is_untouched(card)


def test_no_path_of_this_machine(tmp_path: Path) -> None:
    card = model_card(replace(FACTS, base_model=str(tmp_path / "base"), has_curve=False, has_adapter=True))
    assert "data.train_files=~/rows.jsonl" in card and f"{Path.home()}/" not in card
    assert "base_model" not in front_matter(card) and "`base`, fine-tuned with LoRA" in card
    assert str(tmp_path) not in card and "loss.png" not in card
    assert "lora" in front_matter(card)["tags"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("org/name", True), ("org/name:train", True), ("/data/rows", False), ("rows/train.parquet", False),
     ("rows/*", False), ("~/rows", False), ("rows.jsonl", False)],
)  # fmt: skip
def test_what_is_of_the_hub(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected


def test_settings_leave_out_paths_of_this_machine_and_secrets() -> None:
    config = {
        "data": {"train_files": ("/a/b",), "max_length": 8, "apply_chat_template_kwargs": {"hub_token": "hf_x"}},
        "model": {"partial_pretrain": "/home/me/base", "lora_adapter_path": None},
        "trainer": {"default_local_dir": "/a", "seed": 3},
    }
    assert settings_of(config) == {
        "data.max_length": 8,
        "data.apply_chat_template_kwargs.hub_token": "***",
        "model.partial_pretrain": "base",
        "trainer.seed": 3,
    }


def test_the_command_as_it_was_typed() -> None:
    ours = ["/repo/sft/fsdp_sft_trainer.py", "optim.lr=1"]
    assert command_of(ours, "2") == ["torchrun", "--nproc_per_node=2", "-m", "sft.fsdp_sft_trainer", "optim.lr=1"]
    assert command_of(ours, None) == ["python", "-m", "sft.fsdp_sft_trainer", "optim.lr=1"]
    assert command_of(["mine.py", "x"], "2") == ["python", "mine.py", "x"]


def test_a_template_goes_by_its_name() -> None:
    assert template_name("chatml") == "`chatml`" and template_name("/a/b/mine.jinja") == "`mine.jinja`"
    assert template_name("{{ messages }}") == "given as text" and "tokenizer's own" in template_name(None)


def test_a_card_in_which_somebody_has_written_is_told_from_one_of_ours():
    card = model_card(FACTS)
    assert is_untouched(card)
    for edited in (card + "Mine.\n", card.replace("## Use", "## My use"), card.replace(" -->", "f -->"), "", "mine"):
        assert not is_untouched(edited), edited[-90:]


@pytest.mark.parametrize(
    ("home", "shown"), [("/home/me", "~/x of https://a//b"), ("/home/me/", "~/x of https://a//b"), ("/", None)]
)
def test_paths_below_home_are_shortened_and_addresses_are_not(monkeypatch, home, shown):
    monkeypatch.setenv("HOME", home)
    text = "/home/me/x of https://a//b"
    assert without_home(text) == (shown or text)
