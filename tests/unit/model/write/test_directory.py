"""The exported directory is the source with other numbers: names, shapes, dtypes, side files."""

import itertools
import json
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.errors import InputError
from sft.model import lora
from sft.model.load import build_skeleton, load_weights
from sft.model.pretrained import load_config
from sft.model.write.directory import Speech, export, publish
from sft.model.write.weights import gather_from, write_weights
from tests.assets import attention_on_cpu, boundaries, tiny_model_dir, tiny_tokenizer
from tests.models import load_sharded, model_of_family


def export_to(target, model, source, world, *, dtype=None, tokenizer=None, **speech):
    if not (source / "tokenizer.json").exists():
        tiny_tokenizer().save_pretrained(source)
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(source)
    speech = Speech(**{"tokenizer": tokenizer, "stop_token_ids": [2]} | speech)
    export(model, source, target, speech=speech, is_main=world.is_main, dtype=dtype)
    return target


def headers(directory):
    found = {}
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                view = tensors.get_slice(name)
                found[name] = (tuple(view.get_shape()), view.get_dtype())
    return found


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_names_shapes_and_dtypes_are_the_sources(tmp_path, world_of_one, tie, dtype):
    source = tiny_model_dir(tmp_path / "source", tie=tie, dtype=dtype)
    target = export_to(tmp_path / "target", load_sharded(source), source, world_of_one)
    assert headers(target) == headers(source)
    assert ("lm_head.weight" in headers(target)) is not tie
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert not list(target.glob(".*")), "nothing half-written stays"


def test_trained_numbers_come_back(tmp_path, world_of_one):
    source = tiny_model_dir(tmp_path / "source")
    model = load_sharded(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.ones_like(parameter) * 0.01)
    target = export_to(tmp_path / "target", model, source, world_of_one)
    ids = torch.arange(3, 20)[None]
    found = AutoModelForCausalLM.from_pretrained(target)(ids).logits
    expected = load_sharded_logits(model, ids)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def load_sharded_logits(model, ids):
    length = ids.shape[1]
    return model(ids, position_ids=torch.arange(length)[None], **boundaries(length), use_cache=False).logits


def test_large_models_are_split_into_files_with_an_index(tmp_path, world_of_one, monkeypatch):
    monkeypatch.setattr("sft.model.write.weights.MAX_FILE_BYTES", 100_000)
    source = tiny_model_dir(tmp_path / "source")
    target = export_to(tmp_path / "target", load_sharded(source), source, world_of_one)
    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 1 and all(f"-of-{len(files):05d}" in file.name for file in files)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == headers(source).keys() == headers(target).keys()
    _, report = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(report.values()), report


def test_a_published_model_is_on_the_disk_and_its_config_is_there_last(tmp_path, world_of_one, events):
    exported, run_dir = tmp_path / "exported", tmp_path / "run"
    exported.mkdir()
    run_dir.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (exported / name).write_text(name)
    publish(exported, run_dir)
    moved = [event for event in events if event.startswith("rename ")]
    first, last = events.index(moved[0]), events.index("rename config.json")
    assert {"config.json", "model.safetensors", "tokenizer.json", ".export.partial"} <= set(events[:first])
    assert moved[-1] == "rename config.json"
    assert events[last - 1] == "run" and events[last + 1 :] == ["run"], "the others' names before it, its own after"


def test_published_weights_are_on_the_disk_once_and_leave_no_files_of_a_larger_model(
    tmp_path, world_of_one, monkeypatch
):
    source = tiny_model_dir(tmp_path / "source")
    model = load_sharded(source)
    with monkeypatch.context() as patch:
        patch.setattr("sft.model.write.weights.MAX_FILE_BYTES", 100_000)
        publish(export_to(tmp_path / "many", model, source, world_of_one), tmp_path / "run")
    assert len(list((tmp_path / "run").glob("model-*.safetensors"))) > 1
    one = export_to(tmp_path / "one", model, source, world_of_one)
    publish(one, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in one.iterdir())
    assert (tmp_path / "run" / "model.safetensors").samefile(one / "model.safetensors")
    assert not (tmp_path / "run" / "config.json").samefile(one / "config.json"), "the checkpoint keeps its own"


def test_a_model_with_subdirectories_replaces_one_that_has_them(tmp_path, world_of_one):
    source = tiny_model_dir(tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    template = source / "additional_chat_templates" / "rag.jinja"
    template.write_text("first")
    model, run_dir = load_sharded(source), tmp_path / "run"
    publish(export_to(tmp_path / "first", model, source, world_of_one), run_dir)
    template.write_text("second")
    publish(export_to(tmp_path / "second", model, source, world_of_one), run_dir)
    assert (run_dir / template.relative_to(source)).read_text() == "second"
    assert headers(run_dir) == headers(source) and (run_dir / "config.json").is_file()


def test_where_there_are_no_hard_links_weights_are_copied(tmp_path, world_of_one, monkeypatch):
    def no_links(*_):
        raise OSError("not supported")

    source = tiny_model_dir(tmp_path / "source")
    exported = export_to(tmp_path / "exported", load_sharded(source), source, world_of_one)
    monkeypatch.setattr("os.link", no_links)
    publish(exported, tmp_path / "run")
    assert headers(tmp_path / "run") == headers(source)


def test_models_that_transformers_renames_keep_their_stored_names(tmp_path, world_of_one):
    source = model_of_family(tmp_path / "source", "qwen3_moe")
    target = export_to(tmp_path / "target", load_sharded(source), source, world_of_one)
    assert headers(target) == headers(source)


@pytest.mark.parametrize("renamed", [False, True])
def test_who_does_not_write_holds_one_tensor_at_a_time(tmp_path, world_of_one, monkeypatch, renamed):
    """qwen3_moe is renamed by transformers, and held whole by the rank that writes."""
    source = model_of_family(tmp_path / "source", "qwen3_moe") if renamed else tiny_model_dir(tmp_path / "source")
    (tmp_path / "target").mkdir()
    model, alive, most = load_sharded(source), weakref.WeakSet(), 0

    def gather(name, dtype):
        nonlocal most
        tensor = gather_from(model)(name, dtype).clone()
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr("sft.model.write.weights.on_main_rank", lambda phase, work: None)  # as on another rank
    write_weights(model, source, tmp_path / "target", write=False, gather=gather)
    assert 1 <= most <= 2 and list((tmp_path / "target").iterdir()) == []


def test_stop_tokens_join_those_the_source_had(tmp_path, world_of_one):
    source = tiny_model_dir(tmp_path / "source")
    (source / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.6}')
    target = export_to(tmp_path / "target", load_sharded(source), source, world_of_one, stop_token_ids=[2, 0])
    settings = json.loads((target / "generation_config.json").read_text())
    assert settings == {"eos_token_id": [0, 2], "temperature": 0.6}


def test_the_template_trained_with_is_the_template_of_the_model(tmp_path, world_of_one):
    template = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
    source = tiny_model_dir(tmp_path / "source")
    speech = {"chat_template": template, "tokenizer": tiny_tokenizer(template)}
    target = export_to(tmp_path / "target", load_sharded(source), source, world_of_one, **speech)
    assert AutoTokenizer.from_pretrained(target).chat_template == template
    assert json.loads((target / "tokenizer_config.json").read_text())["chat_template"] == template


def test_custom_code_and_every_tokenizer_file_come_along(tmp_path, world_of_one):
    source = tiny_model_dir(tmp_path / "source")
    beside = ["modeling_own.py", "merges.txt", "vocab.json", "special_tokens_map.json", "tokenizer.model"]
    beside += ["additional_chat_templates/rag.jinja"]
    (source / "additional_chat_templates").mkdir()
    for name in beside:
        (source / name).write_text("{}")
    target = export_to(tmp_path / "target", load_sharded(source), source, world_of_one)
    assert [name for name in beside if not (target / name).is_file()] == []
    assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_lora_leaves_a_repeated_lm_head_out_when_it_is_tied(tmp_path, world_of_one):
    """Some sources repeat the tied weight under its second name; who loads both takes either."""
    source = tiny_model_dir(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    save_file(weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}, source / "model.safetensors")
    config = load_config(source, trust_remote_code=False)
    attention = attention_on_cpu(config, packed=True)
    model = build_skeleton(config, attention=attention, dtype=torch.float32, trust_remote_code=False)
    lora.add_adapters(
        model, base="base", rank=2, alpha=4, targets=["q_proj"], dropout=0.0, use_rslora=False, use_dora=False,
        modules_to_save=[], dtype=torch.float32,
    )  # fmt: skip
    load_weights(model, source, torch.device("cpu"))
    lora.start_adapters(model, seed=0, adapter=None)
    target = export_to(tmp_path / "target", model, source, world_of_one)
    assert headers(target).keys() == weights.keys()


@pytest.mark.parametrize("killed_at", range(8))
def test_killed_while_it_is_published_a_directory_is_no_model_or_a_whole_one(
    tmp_path, world_of_one, monkeypatch, killed_at
):
    """The publishing of a second model over a first one, ended before its n-th move or deletion."""
    source = tiny_model_dir(tmp_path / "source")
    first = export_to(tmp_path / "first", load_sharded(source), source, world_of_one)
    second = export_to(
        tmp_path / "second", load_sharded(tiny_model_dir(tmp_path / "other", seed=1)), source, world_of_one
    )
    run_dir = tmp_path / "run"
    publish(first, run_dir)
    calls = itertools.count()

    def dying(act):
        def wrapped(*arguments, **options):
            if next(calls) == killed_at:
                raise KeyboardInterrupt  # nothing behind it runs, as after a kill
            return act(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        with suppress(KeyboardInterrupt):
            publish(second, run_dir)
    if (run_dir / "config.json").exists():
        weights = load_file(run_dir / "model.safetensors")["model.embed_tokens.weight"]
        whole = [load_file(model / "model.safetensors")["model.embed_tokens.weight"] for model in (first, second)]
        assert any(torch.equal(weights, one) for one in whole)
        AutoModelForCausalLM.from_pretrained(run_dir)
    publish(second, run_dir)
    assert {path.name for path in run_dir.iterdir()} == {path.name for path in second.iterdir()}


def test_without_room_nothing_is_written_and_the_numbers_are_told(tmp_path, world_of_one, monkeypatch):
    source = tiny_model_dir(tmp_path / "source")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(InputError, match=r"no room for the model: it needs 0\.00 GB, .* has 0\.00 GB free"):
        export_to(tmp_path / "target", load_sharded(source), source, world_of_one)
    assert list((tmp_path / "target").iterdir()) == []


def test_another_dtype_is_in_the_weights_and_in_the_config(tmp_path, world_of_one):
    source = tiny_model_dir(tmp_path / "source")
    target = export_to(tmp_path / "target", load_sharded(source), source, world_of_one, dtype=torch.bfloat16)
    assert {dtype for _, dtype in headers(target).values()} == {"BF16"}
    assert AutoModelForCausalLM.from_pretrained(target, dtype="auto").dtype == torch.bfloat16


def test_readable_by_others(tmp_path, world_of_one):
    source = tiny_model_dir(tmp_path / "source")
    target = export_to(tmp_path / "target", load_sharded(source), source, world_of_one)
    modes = {path.stat().st_mode & 0o777 for path in target.iterdir()}
    assert modes == {(source / "config.json").stat().st_mode & 0o777}
