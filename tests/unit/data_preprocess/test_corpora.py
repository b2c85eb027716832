"""Each corpus: its rows in, the columns of SFT and RL out."""

from __future__ import annotations

import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from data_preprocess import alpaca, dolly, gsm8k, jsonl, multiturn, openorca, prepare_informal_math
from data_preprocess.demo import CONVERSATIONS
from data_preprocess.exchange import UnusableRowError
from data_preprocess.source import Rows
from tests.assets import CORPORA, write_jsonl
from tests.launch import REPOSITORY

BOXED = r" Let's think step by step and output the final answer within \boxed{}."
HASHES = ' Let\'s think step by step and output the final answer after "####".'


def said(exchange):
    return [(message["role"], message["content"]) for message in [*exchange.prompt, exchange.reply]]


def test_alpaca():
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    exchange = alpaca.to_exchange(row)
    assert said(exchange) == [("user", "Add.\n\n1 and 2"), ("assistant", "3")]
    assert (exchange.question, exchange.answer, exchange.style, exchange.ground_truth) == (
        *("Add.\n\n1 and 2", "3"),
        *("model", "3"),
    )
    for nothing in ("", " ", None):
        assert said(alpaca.to_exchange({**row, "input": nothing})) == [("user", "Add."), ("assistant", "3")]
    assert said(alpaca.to_exchange({**row, "instruction": " "}))[0] == ("user", "1 and 2")
    with pytest.raises(UnusableRowError, match="column 'instruction' is empty"):
        alpaca.to_exchange({**row, "instruction": " ", "input": ""})
    earlier = {"system": "Count.", "history": [["0?", "0"], ["1?", "1"]]}
    assert said(alpaca.to_exchange({**row, **earlier}))[:5] == [
        ("system", "Count."),
        *[("user", "0?"), ("assistant", "0"), ("user", "1?"), ("assistant", "1")],
    ]
    for history in ([["0?"]], ["0?", "0"], [["0?", None]], 3, {"0?": "0"}):
        with pytest.raises(UnusableRowError, match="history is no list of pairs"):
            alpaca.to_exchange({**row, "history": history})
    with pytest.raises(UnusableRowError, match="column 'output' is empty"):
        alpaca.to_exchange({**row, "output": ""})


def test_dolly():
    row = {"instruction": "Who?", "context": "It was Ada.", "response": "Ada", "category": "closed_qa"}
    exchange = dolly.to_exchange(row)
    assert said(exchange) == [("user", "Who?\n\nIt was Ada."), ("assistant", "Ada")]
    assert (exchange.ability, exchange.style, exchange.ground_truth) == ("closed_qa", "model", "Ada")
    assert said(dolly.to_exchange({"instruction": "Who?", "context": "", "response": "Ada"}))[0] == ("user", "Who?")


def test_openorca():
    row = {"id": "flan.1", "system_prompt": "Be brief.", "question": "1 + 1?", "response": "2"}
    exchange = openorca.to_exchange(row)
    assert said(exchange) == [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2")]
    assert (exchange.question, exchange.facts) == ("1 + 1?", {"id": "flan.1"})
    assert said(openorca.to_exchange({**row, "system_prompt": ""}))[0] == ("user", "1 + 1?")


def test_math_is_scored_by_the_last_box():
    row = {
        "problem": "Halve 1.",
        "solution": r"\boxed{1} no, \boxed{\frac{1}{2}}.",
        "level": "Level 1",
        "type": "Algebra",
    }
    exchange = prepare_informal_math.to_exchange(row)
    assert said(exchange) == [("user", "Halve 1." + BOXED), ("assistant", row["solution"])]
    assert (exchange.style, exchange.ground_truth) == ("rule", r"\frac{1}{2}")
    assert (exchange.question, exchange.answer) == ("Halve 1.", row["solution"])
    assert exchange.facts == {"level": "Level 1", "type": "Algebra"}
    assert prepare_informal_math.to_exchange({**row, "level": 5, "type": None}).facts == {"level": "5"}


def test_math_of_any_keys():
    keys = {"question_key": "q", "solution_key": "a"}

    def convert(row, **options):
        exchange = prepare_informal_math.to_exchange(row, **keys, **options)
        return exchange.prompt[0]["content"], exchange.ground_truth

    assert convert({"q": "1?", "a": "so\n#### 1,000"}) == ("1?" + HASHES, "1000")
    assert convert({"q": "1?", "a": r"so \boxed{1}"}, instruction=" Go!") == ("1? Go!", "1")
    assert convert({"q": "1?", "a": r"so \boxed{1}"}, instruction="") == ("1?", "1")
    assert convert({"q": "1?", "a": "so one", "n": 1}, answer_key="n") == ("1?", "1")
    assert convert({"q": "1?", "a": r"so \boxed{one}", "n": "1"}, answer_key="n") == ("1?" + BOXED, "1")
    with pytest.raises(UnusableRowError, match=r"no final answer in \\boxed\{\} or after '#### ': found 'so one'"):
        convert({"q": "1?", "a": "so one"})
    with pytest.raises(UnusableRowError, match="no column 'n'"):
        convert({"q": "1?", "a": r"\boxed{1}"}, answer_key="n")


def test_jsonl():
    turns = [("user", "1 + 1?"), ("assistant", "2")]
    messages = [{"role": role, "content": content} for role, content in turns]
    for row, options in (
        ({"prompt": "1 + 1?", "response": "2"}, {}),
        ({"q": "1 + 1?", "a": "2"}, {"prompt_key": "q", "response_key": "a"}),
        ({"prompt": messages[:1], "response": messages[1:]}, {}),
        ({"prompt": messages[:1], "response": "2"}, {}),
        ({"messages": messages}, {}),
        ({"talk": messages, "prompt": None}, {"messages_key": "talk"}),
    ):
        exchange = jsonl.to_exchange(row, **options)
        assert said(exchange) == turns
        assert (exchange.style, exchange.ground_truth) == ("model", "2")
    compared = jsonl.to_exchange({"prompt": "1 + 1?", "response": "It is 2.", "n": "2"}, ground_truth_key="n")
    assert (compared.style, compared.ground_truth, compared.answer) == ("rule", "2", "It is 2.")
    with pytest.raises(UnusableRowError, match=r"no column 'prompt': found \['text'\]"):
        jsonl.to_exchange({"text": "a"})


def test_multiturn_finds_its_column():
    messages = [{"from": "human", "value": "1?"}, {"from": "gpt", "value": "1"}]
    for key in ("messages", "conversations", "conversation"):
        assert said(multiturn.to_exchange({key: messages})) == [("user", "1?"), ("assistant", "1")]
    assert said(multiturn.to_exchange({"talk": messages}, messages_key="talk"))[1] == ("assistant", "1")
    assert said(multiturn.to_exchange({"messages": None, "conversations": messages}))[1] == ("assistant", "1")
    with pytest.raises(UnusableRowError, match="no column 'messages' or 'conversations' or 'conversation': found"):
        multiturn.to_exchange({"talk": messages})


def test_the_demo_set_needs_no_source(tmp_path, command):
    for arguments in (["--demo"], []):
        done = command("multiturn", "--local_save_dir", tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("the demo set: 12 short conversations, written for it\n")
    rows = [row for name in ("train", "test") for row in pq.read_table(tmp_path / f"{name}.parquet").to_pylist()]
    assert sorted(row["extra_info"]["index"] for row in rows) == list(range(12)) == list(range(len(CONVERSATIONS)))
    for row in rows:
        assert row["messages"] == CONVERSATIONS[row["extra_info"]["index"]]
        assert len(row["messages"]) >= 4
    assert command("multiturn", "--demo", "--local_dataset_path", tmp_path).returncode == 2


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_wrong_columns_are_refused_in_one_line(corpus, tmp_path, command):
    source = write_jsonl(tmp_path / "train.jsonl", [{"text": "hello"}, {"text": "again"}])
    done = command(corpus, "--local_dataset_path", source, "--local_dir", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: train has no usable row: unusable 2: no column ")
    assert "(first train.jsonl:1: found ['text']). See --help" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_directory_that_cannot_be_written_is_named(tmp_path, command):
    (tmp_path / "file").write_text("in the way")
    done = command("multiturn", "--demo", "--local_dir", tmp_path / "file")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and str(tmp_path / "file") in done.stderr


def test_the_name_of_the_source_is_written(tmp_path, command):
    row = {"prompt": "1 + 1?", "response": "2"}
    source = write_jsonl(tmp_path / "train.jsonl", [row, row])
    for arguments, name in (([], "jsonl"), (["--data_source", "org/mine"], "org/mine"), (["--dataset", "a/b"], "a/b")):
        command("jsonl", "--local_dataset_path", source, "--local_dir", tmp_path, *arguments)
        assert pq.read_table(tmp_path / "train.parquet").to_pylist()[0]["data_source"] == name


def test_the_columns_are_the_users_to_name(tmp_path, command):
    source = write_jsonl(tmp_path / "test.jsonl", [{"q": "1 + 1?", "a": "It is 2.", "n": "2"}])
    keys = ["--prompt_key", "q", "--response_key", "a", "--ground_truth_key", "n"]
    command("jsonl", "--local_dataset_path", source, "--local_dir", tmp_path, *keys)
    row = pq.read_table(tmp_path / "test.parquet").to_pylist()[0]
    assert (row["prompt"][0]["content"], row["reward_model"]["ground_truth"]) == ("1 + 1?", "2")


def test_the_draw_is_the_users_to_set(tmp_path, command):
    drawn = []
    for seed in ("1", "2"):
        command("multiturn", "--demo", "--local_dir", tmp_path, "--val_fraction", "0.25", "--seed", seed)
        drawn.append([row["extra_info"]["index"] for row in pq.read_table(tmp_path / "test.parquet").to_pylist()])
    assert len(drawn[0]) == len(drawn[1]) == 3
    assert drawn[0] != drawn[1]


def test_the_hub_is_asked_for_the_configuration(tmp_path, monkeypatch):
    asked = []
    rows = [{"question": "1 + 1?", "answer": "#### 2"}]
    monkeypatch.setattr(
        "data_preprocess.common.open_source",
        lambda path, **where: asked.append((path, where)) or {"test": Rows(lambda: iter([("hub:0", rows[0])]), 1)},
    )
    monkeypatch.setattr(sys, "argv", ["gsm8k", "--local_dir", str(tmp_path)])
    gsm8k.main()
    assert asked == [(None, {"hub_id": "openai/gsm8k", "hub_config": "main"})]
    monkeypatch.setattr(
        sys, "argv", ["gsm8k", "--dataset", "org/name", "--dataset_config", "other", "--local_dir", str(tmp_path)]
    )
    gsm8k.main()
    assert asked[1] == (None, {"hub_id": "org/name", "hub_config": "other"})


def test_no_corpus_imports_the_trainer_or_what_is_slow():
    program = (
        f"import sys; [__import__('data_preprocess.' + name) for name in {CORPORA}]; "
        "print({name.partition('.')[0] for name in sys.modules} & {'sft', 'torch', 'datasets', 'transformers'})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
