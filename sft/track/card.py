"""Write the README.md of a model: what it was made of and how, as the Hugging Face hub shows it.

Pure: facts in, markdown out. Paths lose everything above the data file or model they name; values of secret names
are masked, as in config.yaml.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import ModelCardData

from sft.config.secrets import redacted
from sft.config.values import expand_home
from sft.config.visible import code_span, visible_line

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
CARD, CURVE = "README.md", "loss.png"
TAG = "fsdp-sft-trainer"
TEMPLATE = Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class CardFacts:
    """What a card tells."""

    name: str
    opens_as: str  # for from_pretrained
    opened_by: str  # the class of transformers whose from_pretrained that is
    base_model: str  # a hub id or a directory
    datasets: Sequence[str]  # as configured: hub ids, files
    data: Mapping[str, Sequence[Mapping[str, Any]]]  # train, val -> {file, rows, hash} of each file
    template: str  # where the chat template comes from
    template_hash: str
    step: int
    total_steps: int
    epochs: float
    samples: int
    tokens: int
    train_loss: tuple[float | None, float | None]  # first and last
    metrics: Mapping[str, float]  # of the last validation
    settings: Mapping[str, Any]  # dotted key -> value
    versions: Mapping[str, str | None]
    command: Sequence[str]
    world_size: int
    has_curve: bool
    has_adapter: bool


def model_card(facts: CardFacts) -> str:
    """Return the whole page: front matter, text, and a last line by which `is_untouched` knows it."""
    return _sealed(redacted(_page(facts)))


def is_untouched(text: str) -> bool:
    """Return True if a README.md is exactly what `model_card` wrote, without edits since."""
    return text == _sealed(text[: text.rstrip("\n").rfind("\n") + 1])


def _sealed(page: str) -> str:
    return f"{page}<!-- {TAG} {hashlib.sha256(page.encode()).hexdigest()} -->\n"


def _page(facts: CardFacts) -> str:
    settings = [(code_span(key), code_span(_shown(value))) for key, value in facts.settings.items()]
    return TEMPLATE.substitute(
        front_matter=_front_matter(facts).to_yaml(),
        name=plain(facts.name),
        opening=_opening(facts),
        curve=f"![training and validation loss]({CURVE})\n\n" if facts.has_curve else "",
        results=_table(("", "value"), _results(facts)),
        data=_table(("set", "file", "rows", "sha256 of rows and tokens"), _data(facts)),
        template=facts.template,
        template_hash=facts.template_hash,
        settings=_table(("key", "value"), settings),
        world_size=facts.world_size,
        command=_block(" ".join(without_home(part) for part in facts.command)),
        versions=_table(("package", "version"), [(name, told) for name, told in facts.versions.items() if told]),
        opened_by=facts.opened_by,
        opens_as=json.dumps(facts.opens_as),
    )


def _front_matter(facts: CardFacts) -> ModelCardData:
    datasets = {match.group() for name in facts.datasets if (match := HUB_ID.match(name)) and is_hub_id(name)}
    return ModelCardData(
        base_model=facts.base_model if is_hub_id(facts.base_model) else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sft", TAG] + ["lora"] * facts.has_adapter,
        datasets=sorted(datasets) or None,
    )


def is_hub_id(name: str) -> bool:
    """Return True if a name is an id of the hub, not a path of this machine."""
    return HUB_ID.match(name) is not None and not Path(name.partition(":")[0]).exists() and not _is_file_name(name)


def _is_file_name(name: str) -> bool:
    return name.endswith((".parquet", ".jsonl", ".json")) or any(sign in name for sign in "*?[~")


def _opening(facts: CardFacts) -> str:
    base = facts.base_model
    shown = f"[{base}](https://huggingface.co/{base})" if is_hub_id(base) else code_span(Path(base).name)
    with_lora = " with LoRA, merged (the adapter alone is in `lora_adapter/`)," if facts.has_adapter else ""
    progress = f"step {facts.step} of {facts.total_steps}, {facts.epochs:.2f} epochs"
    return f"{shown}, fine-tuned{with_lora} on the data below: {progress}."


def _results(facts: CardFacts) -> list[tuple[str, str]]:
    first, last = facts.train_loss
    rows = [("training loss, first -> last", f"{first:.4f} -> {last:.4f}")] if first and last else []
    rows += [(code_span(name), f"{value:.4f}") for name, value in facts.metrics.items()]
    return [*rows, ("samples seen", f"{facts.samples:,}"), ("tokens seen", f"{facts.tokens:,}")]


def _data(facts: CardFacts) -> list[tuple[str, ...]]:
    return [
        (name, code_span(Path(str(file["file"])).name), f"{file['rows']:,}", f"`{file['hash']}`")
        for name, files in facts.data.items()
        for file in files
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def plain(text: str) -> str:
    """Return Markdown that shows the text on one line as it is: no markup, no HTML."""
    return re.sub(r"([\\`*\[\]<>&])", r"\\\1", visible_line(text))


def _block(text: str) -> str:
    """Return a block of code, which no backticks in the text can end."""
    text = visible_line(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shown(item) for item in value)}]"
    if isinstance(value, str):
        return without_home(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def without_home(text: str) -> str:
    """Write paths below the home directory with ~."""
    home = expand_home("~").rstrip("/")  # "" where it is the root, as in some containers: that hides nothing
    return text.replace(f"{home}/", "~/") if home else text
