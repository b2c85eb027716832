"""A written model that is not the one trained is found out, with file and difference."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft.model.write.check import ExportError, check
from tests.assets import CHATML, tiny_model_dir, tiny_tokenizer

WEIGHTS = "model.safetensors"


def edit_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def edit_weights(directory, change):
    weights = load_file(directory / WEIGHTS)
    change(weights)
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})


def drop(name):
    return lambda directory: edit_weights(directory, lambda weights: weights.pop(name))


def replace(name, change):
    return lambda directory: edit_weights(directory, lambda w: w.update({name: change(w[name])}))


def add(name):
    return lambda directory: edit_weights(directory, lambda w: w.update({name: w["model.embed_tokens.weight"].clone()}))


NORM = "model.norm.weight"
DAMAGES = {
    "a weight is missing": (drop(NORM), f"{NORM} is missing; the source has it in {WEIGHTS}"),
    "a weight is new": (add("model.extra"), f"{WEIGHTS}: model.extra is not in the source"),
    "lm_head though tied": (add("lm_head.weight"), f"{WEIGHTS}: lm_head.weight is there, although it is tied"),
    "another shape": (replace(NORM, lambda w: w[:-1].clone()), f"{NORM} has the shape [63], the source [64]"),
    "another dtype": (replace(NORM, torch.Tensor.bfloat16), f"{NORM} is BF16, expected float32"),
    "weights cut short": (
        lambda directory: (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:-100]),
        "*.safetensors do not open",
    ),
    "a wrapper's name": (
        lambda directory: edit_json(directory / "config.json", architectures=["FSDPQwen3ForCausalLM"]),
        "config.json: the architecture 'FSDPQwen3ForCausalLM' has the name of a wrapper in front",
    ),
    "another context length": (
        lambda directory: edit_json(directory / "config.json", max_position_embeddings=128),
        "config.json: max_position_embeddings is 128, the source has 4096",
    ),
    "config cut short": (lambda directory: (directory / "config.json").write_text("{"), "config.json does not open"),
    "another template": (
        lambda directory: tiny_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}").save_pretrained(
            directory
        ),
        "a conversation becomes other tokens than in training from token 0 on",
    ),
    "stop token lost": (
        lambda directory: edit_json(directory / "generation_config.json", eos_token_id=0),
        "generation_config.json: eos_token_id is [0], without the trained stop tokens [2]",
    ),
}


@pytest.fixture
def pair(tmp_path):
    """(a model directory, its copy)"""
    source = tiny_model_dir(tmp_path / "source")
    return source, shutil.copytree(source, tmp_path / "target")


def look(pair, **options):
    source, target = pair
    left_out = {"lm_head.weight"}
    check(target, source, tokenizer=tiny_tokenizer(), stop_token_ids=[2], left_out=left_out, **options)


def test_the_same_model_is_the_same(pair):
    look(pair)


@pytest.mark.parametrize("name", DAMAGES)
def test_what_differs_is_named(pair, name):
    damage, told = DAMAGES[name]
    damage(pair[1])
    with pytest.raises(ExportError) as caught:
        look(pair)
    assert told in str(caught.value) and str(pair[1]) in str(caught.value)


@pytest.fixture
def demanding(pair):
    """The pair with a template that wants a language; how to look at it."""
    template = "{{ raise_exception('no language') if not language }}" + CHATML
    for directory in pair:
        tiny_tokenizer(template).save_pretrained(directory)

    def look(**options):
        left_out = {"lm_head.weight"}
        check(pair[1], pair[0], tokenizer=tiny_tokenizer(template), stop_token_ids=[2], left_out=left_out, **options)

    return look


def test_the_template_is_rendered_with_the_variables_of_training(pair, demanding):
    demanding(template_options={"language": "Latin"})
    tiny_tokenizer("{{ language }}" + CHATML).save_pretrained(pair[1])
    with pytest.raises(ExportError, match="a conversation becomes other tokens than in training from token 0 on"):
        demanding(template_options={"language": "Latin"})


def test_a_template_that_refuses_our_conversation_is_no_problem_but_another_tokenizer_is(pair, demanding):
    demanding()
    edit_json(pair[1] / "tokenizer.json", normalizer={"type": "Lowercase"})
    with pytest.raises(ExportError, match="a text becomes other tokens than in training from token 0 on"):
        demanding()


def test_files_of_more_than_five_gigabytes_are_found(pair, monkeypatch):
    monkeypatch.setattr("sft.model.write.weights.MAX_FILE_BYTES", 100_000)
    with pytest.raises(ExportError, match=r"model.safetensors has 0\.\d+ GB, more than 0\.0001"):
        look(pair)


def test_grown_embeddings_have_grown_to_the_vocabulary_of_the_config(pair):
    edit_json(pair[1] / "config.json", vocab_size=512)
    with pytest.raises(ExportError) as caught:  # the config says more than the weights hold
        replace("model.embed_tokens.weight", lambda w: torch.cat([w, w[:10]]))(pair[1])
        look(pair)
    assert "model.embed_tokens.weight has the shape" in str(caught.value)
    replace("model.embed_tokens.weight", lambda w: torch.cat([w, w])[:512])(pair[1])
    look(pair)
