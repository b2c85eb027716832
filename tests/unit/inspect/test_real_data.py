"""The real corpora under the real minimind tokenizer, and under the templates of Qwen2.5 and Qwen3."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from tests.assets import tiny_model_dir, tiny_tokenizer

pytestmark = pytest.mark.shared_data

CORPORA = {"gsm8k": [], "text2sql": ["data.multiturn.enable=true"], "toolcall": ["data.multiturn.enable=true"]}


@pytest.fixture(scope="module")
def models(shared, tmp_path_factory):
    """Directories with a tiny random model each, by the name of their tokenizer or template."""
    models = {}
    for name in ("minimind", "qwen2.5", "qwen3"):
        models[name] = tiny_model_dir(tmp_path_factory.mktemp("models") / name, vocab_size=6400)
        if name == "minimind":
            for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                (models[name] / file).unlink(missing_ok=True)
            shutil.copytree(shared / "tokenizers" / name, models[name], dirs_exist_ok=True)
        else:
            template = json.loads((shared / "tokenizers" / name / "tokenizer_config.json").read_text())["chat_template"]
            tiny_tokenizer(template).save_pretrained(models[name])
    return models


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("name", ["minimind", "qwen2.5", "qwen3"])
def test_every_corpus_is_inspected(inspect, shared, models, corpus, name):
    train = shared / "data" / corpus / "train.jsonl"
    code, out, err = inspect(
        f"model.partial_pretrain={models[name]}",
        f"data.train_files={train}",
        "data.val_files=null",
        "data.max_length=16384",
        "data.train_max_samples=500",
        "+inspect.samples=1",
        *CORPORA[corpus],
    )
    assert code == 0, err
    print(f"== {corpus} {name}\n{out}")
    rows = min(500, train.read_text().count("\n"))
    assert f"train: {rows} rows -> " in out and "dropped" not in out
    turns = out.split(" trained turns end")[0].rpartition("; ")[2]
    stopped, _, all_turns = turns.partition(" of ")
    assert stopped == all_turns, "nothing is cut, so every turn ends"
    assert "<|im_end|>»" in out
    assert AutoTokenizer.from_pretrained(models[name]).chat_template
