"""Sharded loading equals from_pretrained to the bit; a weight that does not fit is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3TextConfig

from sft.errors import InputError
from sft.model.load import build_skeleton, decoder_layers, load_weights
from sft.model.pretrained import load_config, weight_files
from sft.model.vocabulary import grow_vocabulary
from tests.assets import attention_on_cpu, boundaries, tiny_model_dir
from tests.models import OTHER_FAMILIES, SIZES, load_sharded, model_of_family


@torch.no_grad()
def assert_same_logits(directory, packed):
    """Two samples of 7 and 5 tokens in one row, against transformers alone on each of them."""
    ours = load_sharded(directory, packed=packed)
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.randint(3, 100, (12,), generator=torch.Generator().manual_seed(1))
    samples = ids.split([7, 5])
    expected = torch.cat([theirs(sample[None]).logits[0] for sample in samples])
    if packed:
        positions = torch.cat([torch.arange(7), torch.arange(5)])
        found = ours(ids[None], position_ids=positions[None], **boundaries(7, 5), use_cache=False)
        torch.testing.assert_close(found.logits[0], expected, rtol=1e-5, atol=1e-6)
    else:
        for sample, logits in zip(samples, expected.split([7, 5]), strict=True):
            found = ours(sample[None], position_ids=torch.arange(len(sample))[None], use_cache=False)
            torch.testing.assert_close(found.logits[0], logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_logits_equal_from_pretrained(tmp_path, world_of_one, kind, tie, packed):
    assert_same_logits(tiny_model_dir(tmp_path, kind=kind, tie=tie), packed)


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_other_families_sliding_windows_included(tmp_path, world_of_one, family):
    assert_same_logits(model_of_family(tmp_path, family), packed=True)


def test_loading_draws_no_random_numbers(tmp_path, world_of_one):
    """Gemma's embedding has a buffer beside its weight; computing that must not draw the weight, which files hold."""
    directory, before = model_of_family(tmp_path, "gemma3"), torch.get_rng_state()
    load_sharded(directory)
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_weights_are_one_tensor(tmp_path, world_of_one):
    model = load_sharded(tiny_model_dir(tmp_path, tie=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_bf16_files_become_fp32_master_weights(tmp_path, world_of_one):
    model = load_sharded(tiny_model_dir(tmp_path, dtype="bfloat16"))
    stored = load_file(tmp_path / "model.safetensors")["model.norm.weight"]
    loaded = dict(model.named_parameters())["model.norm.weight"].full_tensor()
    assert (stored.dtype, loaded.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(stored.float(), loaded)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.pop("model.norm.weight"), r"missing: model\.norm\.weight"),
        (lambda weights: weights.update(surplus=torch.zeros(1)), "unexpected: surplus"),
        (
            lambda weights: weights.update({"model.norm.weight": torch.zeros(3)}),
            r"the file has \[3\], the model \[64\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, world_of_one, edit, message):
    weights = load_file(tiny_model_dir(tmp_path) / "model.safetensors")
    edit(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=message):
        load_sharded(tmp_path)


@pytest.mark.parametrize(
    ("put_around", "way_out"),
    [
        (lambda name: f"module.{name}", r"hold 'module\.', which DataParallel or DeepSpeed puts .*save_pretrained"),
        (lambda name: f"_orig_mod.{name}", r"hold '_orig_mod\.', which torch\.compile puts"),
        (lambda name: name.replace("self_attn", "_orig_mod.self_attn"), r"hold '_orig_mod\.'"),
        (lambda name: f"base_model.model.{name}", r"hold 'base_model\.model\.', which peft puts"),
        (
            lambda name: "base_model.model." + name.replace("q_proj.", "q_proj.base_layer."),
            r"which peft puts around a model; merge the adapter \(merge_and_unload\)",
        ),
    ],
)
def test_what_a_program_put_around_the_model_is_named(tmp_path, world_of_one, put_around, way_out):
    file = tiny_model_dir(tmp_path) / "model.safetensors"
    weights = {put_around(name): tensor for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=way_out):
        load_sharded(tmp_path)


def test_files_beside_the_model_are_not_taken_for_its_weights(tmp_path, world_of_one):
    """Makers put the same weights there once more, under names of their own."""
    save_file({"layers.0.attention.wq.weight": torch.zeros(2)}, tiny_model_dir(tmp_path) / "consolidated.safetensors")
    load_sharded(tmp_path)


def test_a_file_that_the_index_names_must_be_there(tmp_path, world_of_one):
    tiny_model_dir(tmp_path)
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"lacks model-00001-of-00002\.safetensors"):
        load_sharded(tmp_path)


def test_buffers_are_real_while_weights_have_no_memory(tmp_path, world_of_one):
    """What no file holds, such as rotary frequencies, is what the architecture computes, sharded or not."""
    directory = tiny_model_dir(tmp_path)
    buffers = dict(load_sharded(directory).named_buffers())
    expected = dict(AutoModelForCausalLM.from_pretrained(directory).named_buffers())
    assert expected and buffers.keys() == expected.keys()
    assert all(torch.equal(buffers[name], expected[name]) for name in expected)


def test_a_hub_id_that_is_not_here_says_so_without_a_network(monkeypatch):
    import huggingface_hub.constants

    from sft.model.pretrained import find_model

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError,
        match=r"model.partial_pretrain=nobody/nothing is not in the hub's cache, and this machine is offline",
    ):
        find_model("nobody/nothing")


def test_a_hub_that_cannot_be_reached_is_no_wrong_name(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    from sft.model.pretrained import find_model

    def nobody_answers(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nobody_answers)
    with pytest.raises(InputError, match=r"nobody/nothing is no .*machine seems to be offline.*hf download nobody"):
        find_model("nobody/nothing")


def test_a_hub_id_is_found_in_the_hub_cache_offline(tmp_path, monkeypatch):
    import huggingface_hub.constants

    from sft.model.pretrained import find_model

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--something"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert find_model("somebody/something") == snapshot


def test_a_vocabulary_that_holds_all_tokens_does_not_grow():
    config = Gemma3TextConfig(**SIZES)
    assert not grow_vocabulary(config, 128) and config.vocab_size == 128
    assert grow_vocabulary(config, 129) and config.vocab_size == 192


def test_another_shape_is_an_error_for_a_grown_vocabulary_too(tmp_path, world_of_one):
    directory = tiny_model_dir(tmp_path)
    config = load_config(directory, trust_remote_code=False)
    grow_vocabulary(config, config.vocab_size + 1)
    config.intermediate_size *= 2
    attention = attention_on_cpu(config, packed=True)
    model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
    with pytest.raises(
        InputError, match=r"cannot be given rows.*wrong shape: model.layers.0.mlp.*instruction_response"
    ):
        load_weights(model, directory, torch.device("cpu"), grown_vocabulary=True)


def test_a_snapshot_without_weights_can_be_asked_for(monkeypatch, tmp_path):
    from sft.model.pretrained import find_model

    asked = []

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        asked.append(("*.safetensors" in ignore_patterns, "*.json" in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find_model("org/name") == find_model("org/name", weights=False) == tmp_path
    assert asked == [(False, True), (True, True)]


def test_weights_that_this_user_may_not_read_are_said(tmp_path, monkeypatch):
    tiny_model_dir(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: "model.safetensors" not in str(path))
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read by this user"):
        weight_files(tmp_path)


def cut(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def indexed(directory, *files):
    """Let an index name these files, each with all of the model; returns them."""
    paths = [directory / file for file in files]
    for path in paths:
        path.write_bytes((directory / "model.safetensors").read_bytes())
    weight_map = {str(number): file for number, file in enumerate(files)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return paths


def twice(directory):
    indexed(directory, "a.safetensors", "b.safetensors")
    (directory / "model.safetensors").unlink()


def linked(directory):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to(directory / "blobs" / "0")


def set_in_config(directory, **settings):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


BAD_DIRECTORIES = {
    "two models": (lambda d: indexed(d, "a.safetensors"), r"holds two models: model\.safetensors, which transformers"),
    "a tensor twice": (twice, r"weight is in .*a\.safetensors and in .*b\.safetensors; only one can be meant"),
    "a link to nothing": (linked, r"model\.safetensors links to a file that is not there; copy"),
    "a text for a number": (lambda d: set_in_config(d, hidden_size="64"), r"no usable config\.json there \(Strict"),
    "no dtype of torch": (lambda d: set_in_config(d, dtype="auto"), r"no usable config\.json there \(AttributeError"),
    "cut short": (cut, r"model\.safetensors is no whole safetensors file .* download it again"),
    "empty": (lambda d: (d / "model.safetensors").write_bytes(b""), r"model\.safetensors is no whole .* again"),
    "a pointer of Git LFS": (
        lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        r"model\.safetensors is no whole .* download it again",
    ),
    "no index": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_ma'),
        r"model\.safetensors\.index\.json is no index of weights .* download it again",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), r"holds no \*\.safetensors but no weights at all"),
    "no config": (lambda d: (d / "config.json").write_text("{"), r"no usable config\.json there"),
    "unknown": (lambda d: (d / "config.json").write_text('{"model_type": "x"}'), r"no usable config\.json there"),
}


@pytest.mark.parametrize("damage", BAD_DIRECTORIES)
def test_a_bad_directory_is_refused_in_a_sentence(tmp_path, world_of_one, damage):
    change, told = BAD_DIRECTORIES[damage]
    change(tiny_model_dir(tmp_path))
    with pytest.raises(InputError, match=told):
        load_sharded(tmp_path)


def test_layers_are_the_longest_list_where_an_architecture_names_none():
    config = AutoConfig.for_model("biogpt", vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    model = AutoModelForCausalLM.from_config(config)
    assert [type(layer).__name__ for layer in decoder_layers(model)] == ["BioGptDecoderLayer"] * 3
