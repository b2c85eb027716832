"""python -m sft.generate: the template and the stop tokens are the model's, an answer does not depend on its batch."""

import io
import json
import logging
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.errors import InputError
from sft.generate import ask
from sft.generate.__main__ import main
from sft.generate.answer import chat_prompt, open_model
from sft.model.answer import Sampling, answer
from tests.assets import tiny_model_dir, write_jsonl

QUESTIONS = ["1 + 1?", "Which of the numbers is the largest?", "Why?"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A model whose answers differ from prompt to prompt, and which stops at <|im_end|> now and then."""
    path = tiny_model_dir(tmp_path_factory.mktemp("generate") / "model")
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight *= 8
    model.generation_config.update(temperature=0.1, do_sample=True, repetition_penalty=5.0)
    model.save_pretrained(path)
    return path


@pytest.fixture
def run(model_dir, capsys):
    def run(*arguments):
        capsys.readouterr()
        code = main(["--model", str(model_dir), "--max-new-tokens", "12", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def alone(model_dir, question, system=None):
    """Greedily, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_dir), AutoModelForCausalLM.from_pretrained(model_dir)
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**ids, max_new_tokens=12, do_sample=False, repetition_penalty=1.0)
    return tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_one_prompt(run, model_dir):
    code, out, _ = run("--prompt", QUESTIONS[0])
    assert (code, out) == (0, alone(model_dir, QUESTIONS[0]) + "\n")
    assert (
        run("--prompt", QUESTIONS[0], "--system", "Be brief.")[1] == alone(model_dir, QUESTIONS[0], "Be brief.") + "\n"
    )


@pytest.mark.parametrize("kind", ["txt", "jsonl", "messages"])
def test_a_file_of_prompts_in_batches(run, model_dir, tmp_path, kind):
    if kind == "txt":
        file = tmp_path / "ask.txt"
        file.write_text("\n\n".join(QUESTIONS))
    else:
        chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
        rows = [{"messages": chat} for chat in chats] if kind == "messages" else [{"prompt": q} for q in QUESTIONS]
        file = write_jsonl(tmp_path / "ask.jsonl", rows)
    code, out, _ = run("--prompts", file, "--batch-size", 2)
    found = [json.loads(line) for line in out.splitlines()]
    expected = [alone(model_dir, question) for question in QUESTIONS]
    assert code == 0 and found == [{"prompt": q, "answer": a} for q, a in zip(QUESTIONS, expected, strict=True)]
    assert len(set(expected)) > 1, "else the batches above would compare one constant with itself"
    assert run("--prompts", file, "--out", tmp_path / "out.jsonl")[:2] == (0, "")
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == found


def test_variables_of_the_template_are_passed_on(run, model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = "{{- mood | default('') }}" + tokenizer.chat_template
    question = [{"role": "user", "content": "Why?"}]
    assert tokenizer.decode(chat_prompt(tokenizer, question, mood="Cheer! ")).startswith("Cheer! <|im_start|>")
    moody = shutil.copytree(model_dir, tmp_path / "moody")
    tokenizer.save_pretrained(moody)
    told = run("--model", moody, "--prompt", "Why?", "--chat-template-kwargs", '{"mood": "the the the the "}')[1]
    assert told != run("--model", moody, "--prompt", "Why?")[1]
    misspelt = run("--model", moody, "--prompt", "Why?", "--chat-template-kwargs", '{"moood": "the "}')[2]
    assert "warning: the chat template does not read moood" in misspelt and "did you mean mood?" in misspelt
    for wrong in ("mood", "[1]"):
        with pytest.raises(SystemExit):
            run("--prompt", "Why?", "--chat-template-kwargs", wrong)


def test_a_row_that_ends_with_its_answer_is_asked_without_it(run, model_dir, tmp_path):
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    _, out, err = run("--prompts", write_jsonl(tmp_path / "ask.jsonl", [{"messages": chat}]))
    assert json.loads(out) == {"prompt": "Why?", "answer": alone(model_dir, "Why?")}
    assert "1 conversations end with an answer, which is left out" in err


def test_answers_end_at_the_stop_tokens_of_the_generation_config(model_dir):
    model, tokenizer = open_model(model_dir)
    ids = chat_prompt(tokenizer, [{"role": "user", "content": QUESTIONS[1]}])
    (free,) = answer(model, tokenizer, [ids], Sampling(12))
    second = tokenizer(free, add_special_tokens=False)["input_ids"][1]
    model.generation_config.eos_token_id = [2, second]
    (stopped,) = answer(model, tokenizer, [ids], Sampling(12))
    assert free.startswith(stopped) and len(stopped) < len(free)


def test_what_is_drawn_follows_the_seed(run):
    def drawn(seed):
        return run("--prompt", "Why?", "--temperature", 2, "--top-p", 0.9, "--seed", seed)[1]

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_model_without_a_template_says_the_way_out(run, model_dir, tmp_path):
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(model_dir).save_pretrained(bare)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    code, _, err = run("--model", bare, "--prompt", "Why?")
    assert code == 2 and "the model has no chat template" in err and "--raw" in err
    assert run("--model", bare, "--prompt", "Why?", "--raw")[0] == 0


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "is empty"),
        ([{"question": "?"}], 'ask.jsonl:1: expected "prompt" with text'),
        ([{"prompt": ""}], "ask.jsonl:1"),
        ([{"messages": [{"role": "assistant", "content": "So."}]}], "ask.jsonl:1: expected"),
    ],
)
def test_rows_that_ask_nothing_are_named(run, tmp_path, rows, told):
    code, _, err = run("--prompts", write_jsonl(tmp_path / "ask.jsonl", rows))
    assert code == 2 and told in err


def test_a_gpu_that_is_not_used_is_said(model_dir, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft"), "propagate", True)
    monkeypatch.setattr("sft.generate.answer.why_on_the_cpu", lambda: "its driver is broken.")
    open_model(model_dir, device=torch.device("cpu"))
    assert "on the CPU" not in caplog.text, "who names a device has said so"
    open_model(model_dir)
    assert "on the CPU: its driver is broken." in caplog.text


def test_a_directory_that_is_no_model_says_what_to_give(run, tmp_path):
    code, _, err = run("--model", tmp_path, "--prompt", "Why?")
    assert code == 2 and "no model directory" in err and "python -m sft.export" in err


def test_stdin_is_a_prompt_and_a_terminal_a_conversation(run, model_dir, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Why?"))
    assert run()[:2] == (0, alone(model_dir, "Why?") + "\n")
    lines, asked = iter(["Why?", "", "And?", "/new", "Why?"]), []

    def type_in(prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", type_in)
    ask.talk("Be brief.", lambda messages: asked.append([m["content"] for m in messages]) or "Because.")
    assert asked == [["Be brief.", "Why?"], ["Be brief.", "Why?", "Because.", "And?"], ["Be brief.", "Why?"]]


def test_an_answer_ends_where_the_model_has_no_more_positions(tmp_path):
    model, tokenizer = open_model(tiny_model_dir(tmp_path, max_position_embeddings=32))
    long, short = [5] * 28, [6] * 3
    both = answer(model, tokenizer, [short, long], Sampling(12))
    assert both == [answer(model, tokenizer, [prompt], Sampling(12))[0] for prompt in (short, long)]
    assert both[1] == answer(model, tokenizer, [long], Sampling(4))[0] != ""
    with pytest.raises(InputError, match=r"32 tokens leaves no room for an answer: the model has 32 positions"):
        answer(model, tokenizer, [short, [5] * 32], Sampling(12))
