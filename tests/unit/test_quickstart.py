"""The quickstart's material: the same bytes every time, nothing held out is trained, digits stay digits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "quickstart.py"


def load_script():
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quickstart = load_script()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("quickstart")
    assert quickstart.main(["prepare", "--dir", str(root)]) == 0
    return root


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rows(root: Path, name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (root / "data" / f"{name}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (10, "ten"),
        (19, "nineteen"),
        (20, "twenty"),
        (71, "seventy-one"),
        (100, "one hundred"),
        (115, "one hundred fifteen"),
        (4000, "four thousand"),
        (4271, "four thousand two hundred seventy-one"),
        (9009, "nine thousand nine"),
    ],
)
def test_in_words(number, words):
    assert quickstart.in_words(number) == words


def test_preparing_again_gives_the_same_bytes(root, tmp_path):
    quickstart.prepare(tmp_path)
    assert files(tmp_path) == files(root)
    assert {"data/train.jsonl", "model/model.safetensors", "model/tokenizer.json"} <= files(root).keys()


def test_every_number_is_in_exactly_one_file(root):
    prompts = [row["prompt"] for name in ("train", "val", "heldout") for row in rows(root, name)]
    assert len(prompts) == len(set(prompts)) == 10_000
    assert (len(rows(root, "val")), len(rows(root, "heldout"))) == (200, 200)


def test_chat_is_chatml_with_one_token_per_digit_and_one_per_word(root):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    messages = [
        {"role": "user", "content": "Write 4271 in words."},
        {"role": "assistant", "content": "four thousand two hundred seventy-one"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|im_start|>user\nWrite 4271 in words.<|im_end|>\n"
        "<|im_start|>assistant\nfour thousand two hundred seventy-one<|im_end|>\n"
    )
    assert text.startswith(tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True))
    tokens = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    assert "".join(tokens) == text
    assert tokens[tokens.index("4") :][:4] == ["4", "2", "7", "1"]
    assert tokens[-9:] == ["four", " thousand", " two", " hundred", " seventy", "-", "one", "<|im_end|>", "\n"]
    assert tokenizer.eos_token == "<|im_end|>"


def test_model_is_small_tied_and_stops_at_the_end_of_the_turn(root):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(root / "model")
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    assert 0.5e6 < model.num_parameters() < 1e6
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # pyright: ignore[reportOptionalMemberAccess]
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_an_answer_does_not_depend_on_its_batch(root, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(root / "model")
    with torch.no_grad():  # as it is born it only echoes the last token, whatever the prompt
        for parameter in model.model.layers.parameters():
            parameter *= 8
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(root / "model").save_pretrained(tmp_path)
    prompts = ["Write 7 in words.", "Write 4271 in words.", "Write 55 in words."]
    together = quickstart.answer(tmp_path, prompts)
    alone = quickstart.answer(tmp_path, prompts, batch_size=1)
    assert together == alone
    assert len(set(together)) > 1  # else the test above would compare one constant with itself


@pytest.mark.parametrize(("wrong", "exit_code"), [(0, 0), (10, 0), (11, 1)])
def test_score_passes_from_95_percent_on(root, monkeypatch, capsys, wrong, exit_code):
    run_dir = root / "run"
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.json").write_text("{}")
    right = [row["response"] for row in rows(root, "heldout")]
    monkeypatch.setattr(quickstart, "answer", lambda model_dir, prompts: ["?"] * wrong + right[wrong:])
    assert quickstart.main(["score", "--dir", str(root)]) == exit_code
    printed = capsys.readouterr().out
    assert f"held-out exact match: {1 - wrong / 200:.3f}\n" in printed
    assert str(run_dir / "loss.png") in printed
    assert f'from_pretrained("{run_dir}")' in printed


def test_score_before_training_says_what_is_missing(tmp_path, capsys):
    assert quickstart.main(["score", "--dir", str(tmp_path)]) == 2
    assert "train first" in capsys.readouterr().err
