"""A written model, read again as those who open it will, and compared with the model it came from.

What disagrees is an error before the directory has its name: no run ends with a model that is wrong in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer

from sft.config.checks.model import quantisation_of
from sft.errors import InputError
from sft.model.dequantise import stored_weights
from sft.model.pretrained import weight_files
from sft.model.write import weights
from sft.model.write.growing_file import DTYPES
from sft.model.write.proof import loading_report
from sft.parallel.shards import StoredTensors

PREFIXES = ("FSDP", "Peft", "DDP")
"""What wrappers put in front of an architecture's name, which nobody else knows then."""

VOCABULARY = "vocab_size"  # which new tokens may have made larger: then the shapes of the weights tell
CONVERSATION = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "2 + 2 = 4."}]
MAX_PROBLEMS = 8


class ExportError(InputError):
    """What was written is not the model; the message names file and difference."""


def check(
    target: Path,
    source: Path,
    *,
    tokenizer: Any,
    stop_token_ids: Sequence[int],
    template_options: Mapping[str, Any] | None = None,
    left_out: AbstractSet[str] = frozenset(),
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Raise ExportError unless `target` opens, and differs from `source` only in what training changes.

    tokenizer: the one trained with, its template rendered with template_options. left_out: names of the source that a
    model need not store. dtype: of the weights, where not the source's.
    """
    weight_problems = list(_weight_problems(target, source, left_out, dtype))
    problems = [
        *_config_problems(target, source, dtype, trust_remote_code),
        *(weight_problems or _report_problems(target, trust_remote_code)),
        *_tokenizer_problems(target, tokenizer, template_options or {}, trust_remote_code),
        *_stop_problems(target, stop_token_ids),
    ]
    if problems:
        more = f"\n  and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise ExportError(
            f"the model written to {target} is not the one trained, and is not kept:\n  "
            + "\n  ".join(problems[:MAX_PROBLEMS])
            + more
        )


def _config_problems(target: Path, source: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> Iterator[str]:
    try:
        config = AutoConfig.from_pretrained(target, trust_remote_code=trust_remote_code).to_dict()
    except Exception as error:  # a remote class may raise whatever it likes
        yield f"config.json does not open ({error})"
        return
    expected = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code).to_dict()
    widened = ("quantization_config", "dtype", "torch_dtype") if quantisation_of(source) else ()
    may_differ = {"_name_or_path", VOCABULARY, *widened, *(() if dtype is None else ("dtype", "torch_dtype"))}
    for key in sorted(config.keys() | expected.keys()):
        found, wanted = (_without(side.get(key), may_differ) for side in (config, expected))
        if key not in may_differ and found != wanted:
            yield f"config.json: {key} is {found!r}, the source has {wanted!r}"
    for name in config.get("architectures") or []:
        if name.startswith(PREFIXES):
            yield f"config.json: the architecture {name!r} has the name of a wrapper in front"


def _without(value: Any, keys: set[str]) -> Any:
    """Return a section, such as text_config, without these keys; anything else as it is."""
    return {key: part for key, part in value.items() if key not in keys} if isinstance(value, dict) else value


def _weight_problems(
    target: Path, source: Path, left_out: AbstractSet[str], dtype: torch.dtype | None
) -> Iterator[str]:
    try:
        files = weight_files(target)
        found = StoredTensors.of_whole_tensors(files)
    except (InputError, SafetensorError, OSError, ValueError) as error:
        yield f"*.safetensors do not open ({error})"
        return
    expected = stored_weights(source)
    before, after = _vocabulary(source), _vocabulary(target)
    for name in expected.parts.keys() - found.parts.keys() - left_out:
        yield f"{name} is missing; the source has it in {expected.parts[name][0].file.name}"
    for name in sorted(found.parts):
        file = found.parts[name][0].file.name
        if name in left_out:
            yield f"{file}: {name} is there, although it is tied to another weight or nobody reads it"
            continue
        if name not in expected.parts:
            yield f"{file}: {name} is not in the source"
            continue
        mine, theirs = found.shape(name), expected.shape(name)
        has_grown = theirs[:1] == (before,) and mine == (after, *theirs[1:])
        if mine != theirs and not has_grown:
            yield f"{file}: {name} has the shape {list(mine)}, the source {list(theirs)}"
        wanted = DTYPES[expected.dtypes[name]]
        wanted = dtype if dtype is not None and wanted.is_floating_point else wanted
        if DTYPES[found.dtypes[name]] != wanted:
            yield f"{file}: {name} is {found.dtypes[name]}, expected {str(wanted).removeprefix('torch.')}"
    for file in files:
        with safe_open(file, "pt") as tensors:
            several = len(tensors.keys()) > 1
        if several and file.stat().st_size > weights.MAX_FILE_BYTES * 1.01:  # a header comes on top
            yield f"{file.name} has {file.stat().st_size / 1e9:,.2f} GB, more than {weights.MAX_FILE_BYTES / 1e9:g}"


def _report_problems(target: Path, trust_remote_code: bool) -> Iterator[str]:
    """Yield what transformers says of the written weights: it has the last word on what opens."""
    try:
        yield from (f"transformers: {line}" for line in loading_report(target, trust_remote_code=trust_remote_code))
    except Exception as error:  # a remote class may raise whatever it likes
        yield f"transformers does not open it ({type(error).__name__}: {error})"


def _vocabulary(directory: Path) -> int | None:
    try:
        config = json.loads((directory / "config.json").read_text())
    except ValueError:  # it does not open, and that was said
        return None
    return (config if VOCABULARY in config else config.get("text_config", {})).get(VOCABULARY)


def _tokenizer_problems(
    target: Path, tokenizer: Any, options: Mapping[str, Any], trust_remote_code: bool
) -> Iterator[str]:
    ids_of = partial(_ids_of_chat, options=options)
    try:
        expected = ids_of(tokenizer)
    except Exception:  # a template may want other conversations than ours, and yet be the one trained with
        ids_of = _ids_of_text
        expected = ids_of(tokenizer)
    try:
        found = ids_of(AutoTokenizer.from_pretrained(target, trust_remote_code=trust_remote_code))
    except Exception as error:  # a template is a program, a remote class as well
        yield f"the tokenizer does not open, or its chat template fails ({error})"
        return
    for what, ids in found.items():
        if ids != expected[what]:
            at = next((n for n, (a, b) in enumerate(zip(ids, expected[what], strict=False)) if a != b), len(ids))
            yield (
                f"tokenizer.json, chat_template.jinja: {what} becomes other tokens than in training from token {at} "
                f"on: {ids[at : at + 5]}, expected {expected[what][at : at + 5]}"
            )


def _ids_of_chat(tokenizer: Any, options: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return a conversation and a prompt, through the chat template."""
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, **options)
    prompt = tokenizer.apply_chat_template(CONVERSATION[:1], tokenize=False, add_generation_prompt=True, **options)
    return {
        what: tokenizer(rendered, add_special_tokens=False)["input_ids"]
        for what, rendered in (("a conversation", text), ("a prompt", prompt))
    }


def _ids_of_text(tokenizer: Any) -> dict[str, list[int]]:
    text = "\n".join(message["content"] for message in CONVERSATION)
    return {"a text": tokenizer(text, add_special_tokens=False)["input_ids"]}


def _stop_problems(target: Path, stop_token_ids: Sequence[int]) -> Iterator[str]:
    settings = json.loads((target / "generation_config.json").read_text())
    found = settings.get("eos_token_id")
    found = found if isinstance(found, list) else [found]
    if missing := [token_id for token_id in stop_token_ids if token_id not in found]:
        yield f"generation_config.json: eos_token_id is {found}, without the trained stop tokens {missing}"
