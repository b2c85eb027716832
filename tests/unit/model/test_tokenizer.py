"""A tokenizer is opened as its file says, or refused in a sentence."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sft.errors import InputError
from sft.model import tokenizer as subject
from sft.model.tokenizer import load_tokenizer, takes_file_as_it_is, template_of_processor
from sft.model.write.side_files import write_side_files
from tests.assets import tiny_model_dir, tiny_tokenizer

TEXT = " It's 1234 + x_y\n\n\tthree  spaces;\r\n É 漢字"


def saved(path: Path, **parts) -> Path:
    """A model directory with the tiny tokenizer, parts of its tokenizer.json replaced."""
    tiny_tokenizer().save_pretrained(path)
    (path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    file = path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | parts))
    return path


def opens_as(monkeypatch, directory: Path, change) -> None:
    """Let AutoTokenizer rebuild the tokenizer in another way than its file says, as some versions do."""
    other = AutoTokenizer.from_pretrained(directory)

    class Rebuilt(type(other)):
        pass

    other.__class__ = Rebuilt
    change(other.backend_tokenizer)

    class Auto:
        @staticmethod
        def from_pretrained(*_, **__):
            return other

    monkeypatch.setattr(subject, "AutoTokenizer", Auto)


def ids(tokenizer, text: str = TEXT) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def metaspace(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()


def lower_case(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Lowercase()


def digits(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), backend.pre_tokenizer]
    )


def no_decoder(backend: Tokenizer) -> None:
    backend.decoder = decoders.Fuse()


@pytest.mark.parametrize("change", [metaspace, lower_case, digits, no_decoder])
def test_a_tokenizer_that_is_rebuilt_otherwise_than_its_file_says_gives_way_to_the_file(tmp_path, monkeypatch, change):
    directory = saved(tmp_path)
    opens_as(monkeypatch, directory, change)
    tokenizer = load_tokenizer(directory, trust_remote_code=False)
    assert takes_file_as_it_is(tokenizer)
    assert ids(tokenizer) == ids(tiny_tokenizer())
    assert tokenizer.decode(ids(tokenizer)) == TEXT


def test_a_tokenizer_that_is_rebuilt_as_its_file_says_stays(tmp_path, monkeypatch):
    directory = saved(tmp_path)
    opens_as(monkeypatch, directory, lambda backend: None)
    assert not takes_file_as_it_is(load_tokenizer(directory, trust_remote_code=False))


def test_a_byte_level_tokenizer_labelled_llama_keeps_its_spaces_here_and_where_it_is_opened_next(tmp_path):
    source = saved(tmp_path / "source")
    config_file = source / "tokenizer_config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    tokenizer = load_tokenizer(source, trust_remote_code=False)
    assert ids(tokenizer) == ids(tiny_tokenizer())
    (tmp_path / "target").mkdir()
    write_side_files(
        source, tmp_path / "target", tokenizer=tokenizer, stop_token_ids=[2], chat_template=None, new_tokens={},
        vocabulary=600, dtype=None,
    )  # fmt: skip
    written = json.loads((tmp_path / "target" / "tokenizer_config.json").read_text())
    assert written == json.loads(config_file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert ids(AutoTokenizer.from_pretrained(tmp_path / "target")) == ids(tiny_tokenizer())


def test_a_tokenizer_json_that_loses_spaces_by_itself_is_refused(tmp_path):
    directory = saved(tmp_path, decoder={"type": "Strip", "content": "Ġ", "start": 1, "stop": 1})
    with pytest.raises(InputError, match=r"loses the spaces between words: 'one two three four' becomes '.*download"):
        load_tokenizer(directory, trust_remote_code=False)


def test_tekken_alone_is_refused_with_the_command_that_makes_a_tokenizer_of_it(tmp_path):
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(InputError, match=r"has only tekken\.json.*pip install mistral-common.*save_pretrained"):
        load_tokenizer(tmp_path, trust_remote_code=False)
    saved(tmp_path)
    assert ids(load_tokenizer(tmp_path, trust_remote_code=False)) == ids(tiny_tokenizer())


def test_tokenizer_model_alone_asks_for_the_package_that_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    with pytest.raises(InputError, match=r"has only tokenizer\.model.*pip install sentencepiece protobuf"):
        load_tokenizer(tmp_path, trust_remote_code=False)


def test_a_tokenizer_made_from_a_model_file_is_written_as_a_tokenizer_json(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    (tmp_path / "target").mkdir()
    write_side_files(
        tmp_path / "source", tmp_path / "target", tokenizer=tiny_tokenizer(), stop_token_ids=[2], chat_template=None,
        new_tokens={}, vocabulary=600, dtype=None,
    )  # fmt: skip
    opened = PreTrainedTokenizerFast.from_pretrained(tmp_path / "target")
    assert ids(opened) == ids(tiny_tokenizer())
    assert opened.eos_token == tiny_tokenizer().eos_token


def test_no_tokenizer_at_all_is_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(InputError, match=r"no tokenizer\.json \(found config\.json\); copy the tokenizer's files"):
        load_tokenizer(tmp_path, trust_remote_code=False)


@pytest.mark.parametrize(
    "content, way_out",
    [
        ('{"version": "1.0", ', "no usable tokenizer there .*download its files again"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "tokenizer.json is a git-lfs pointer"),
    ],
)
def test_a_damaged_tokenizer_json_is_a_sentence(tmp_path, content, way_out):
    (saved(tmp_path) / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=way_out):
        load_tokenizer(tmp_path, trust_remote_code=False)


def test_a_disk_that_fails_is_not_called_a_damaged_file(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("sft.model.tokenizer.AutoTokenizer.from_pretrained", fail)
    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    with pytest.raises(InputError, match=r"its tokenizer cannot be read \(.*Input/output error\); check the disk"):
        load_tokenizer(saved(tmp_path), trust_remote_code=False)


def test_truncation_and_padding_left_in_the_file_cut_nothing(tmp_path):
    padding = {"strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": tiny_tokenizer().pad_token}
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    directory = saved(tmp_path, truncation=truncation, padding=padding)
    assert ids(load_tokenizer(directory, trust_remote_code=False)) == ids(tiny_tokenizer())


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_the_template_that_a_vision_model_keeps_for_its_processor_is_used(tmp_path, name):
    directory = saved(tmp_path)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": None}))
    (directory / name).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert load_tokenizer(directory, trust_remote_code=False).chat_template == "{{ messages }}"
    assert template_of_processor(directory) == "{{ messages }}"
    (directory / "chat_template.jinja").write_text("{{ bos_token }}")
    assert load_tokenizer(directory, trust_remote_code=False).chat_template == "{{ bos_token }}"
    assert template_of_processor(directory) is None


def test_a_class_that_transformers_takes_by_model_type_is_trained_with_as_everybody_opens_it(tmp_path):
    """Qwen2 and Qwen3.5, whatever the files say: the export would open otherwise than it was trained."""
    directory = tiny_model_dir(tmp_path, kind="qwen2")
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    opened = AutoTokenizer.from_pretrained(directory)
    assert type(opened).__name__ == "Qwen2Tokenizer"
    assert ids(load_tokenizer(directory, trust_remote_code=False)) == ids(opened)
