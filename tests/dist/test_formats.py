"""Rows of other formats, and of a class of the user's, through the command on two ranks."""

import textwrap

from tests.assets import write_jsonl
from tests.launch import read_metrics, succeed


def test_a_class_of_the_users_trains_and_is_asked_by_one_process(base, tmp_path):
    """Two epochs of items that are samples, then of items that are messages; the tokens of both are the same."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent(
            """
            import json, os, pathlib

            class Ids:
                def __init__(self, parquet_files, tokenizer, config):
                    (pathlib.Path(__file__).parent / f"{type(self).__name__}-{os.getpid()}").touch()
                    self.rows = [json.loads(line) for file in parquet_files for line in pathlib.Path(file).open()]
                    self.tokenizer = tokenizer

                def __len__(self):
                    return len(self.rows)

                def __getitem__(self, index):
                    messages = self.messages(self.rows[index])
                    def ids(**more):
                        return self.tokenizer.apply_chat_template(messages[:more.pop("upto")], **more)["input_ids"]
                    prompt, whole = ids(upto=1, add_generation_prompt=True), ids(upto=2)
                    loss_mask = [0] * (len(prompt) - 1) + [1] * (len(whole) - len(prompt) - 1) + [0, 0]
                    padding = [0] * 5  # verl pads every item
                    return {
                        "input_ids": whole + padding,
                        "attention_mask": [1] * len(whole) + padding,
                        "loss_mask": loss_mask + padding,
                    }

                def messages(self, row):
                    said = {"user": row["question"], "assistant": row["answer"]}
                    return [{"role": role, "content": content} for role, content in said.items()]

            class Messages(Ids):
                def __getitem__(self, index):
                    return {"messages": self.messages(self.rows[index])}
            """
        )
    )
    losses = {}
    for name in ("Ids", "Messages"):
        custom = [f"data.custom_cls.path={tmp_path / 'mine.py'}", f"data.custom_cls.name={name}"]
        done = succeed(
            [*base, *custom, "trainer.total_training_steps=2", f"trainer.default_local_dir={tmp_path / name}"],
            ranks=2,
            cwd=tmp_path,
        )
        losses[name] = [line["train/loss"] for line in read_metrics(tmp_path / name)]
        assert f"{name}: rows come from data.custom_cls" in done.stderr
        assert len(list(tmp_path.glob(f"{name}-*"))) == 1, "the other rank waits for the tokens"
    assert len(losses["Ids"]) == 2
    assert losses["Ids"] == losses["Messages"]


def test_every_format_trains_in_one_run_and_says_its_verdict(base, tmp_path):
    pair = {"instruction": "1 + 1?", "output": "2"}
    turns = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]
    files = {
        "alpaca": {**pair, "input": ""},
        "dolly": {"instruction": "1 + 1?", "context": "", "response": "2"},
        "openorca": {"system_prompt": "", "question": "1 + 1?", "response": "2"},
        "sharegpt": {"conversations": turns},
        "prompt_response": {"prompt": "1 + 1?", "completion": "2"},
        "text": {"text": "One and one is two."},
    }
    for name, row in files.items():
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", [row] * 2)
    done = succeed(
        [
            *base,
            f"data.train_files={tmp_path / 'data'}",
            "trainer.total_training_steps=3",
            f"trainer.default_local_dir={tmp_path / 'run'}",
        ],
        ranks=2,
        cwd=tmp_path,
    )
    assert [name for name in files if f"{name}.jsonl: {name} (columns " not in done.stderr] == []
    assert len(read_metrics(tmp_path / "run")) == 3
