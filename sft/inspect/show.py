"""Write samples and numbers for the console. Where there are no colours, « and » stand around what trains."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from sft.config.visible import visible
from sft.data.audit import Audit, Found, kept, oddities, trained
from sft.inspect.bars import text_bars
from sft.inspect.tokens import SeenSample, Token

TRAINED, SPECIAL, QUIET = "green", "cyan", "dim"


def show_sample(console: Console, sample: SeenSample, *, of: int, ids: bool) -> None:
    """Show one conversation as the model meets it. ids: with the id behind every token."""
    console.rule(
        f"{sample.where} · sample {sample.number + 1:,} of {of:,} · {len(sample.tokens):,} tokens, "
        f"{sample.supervised_tokens:,} trained",
        style=QUIET,
    )
    text = conversation(sample, marks=console.no_color or not console.is_terminal, ids=ids)
    console.print(text, soft_wrap=True, end="" if text.plain.endswith("\n") else "\n")


def conversation(sample: SeenSample, *, marks: bool, ids: bool) -> Text:
    """Return the text of a sample: what trains in green (with marks: in « and »), its weight where that is not 1."""
    text = Text()
    for weight, tokens in sample.runs():
        if weight == 0:
            _append(text, tokens, ids=ids)
            continue
        text.append("«" * marks + (f"{weight:g}:" if weight != 1 else ""), f"bold {TRAINED}")
        _append(text, tokens, ids=ids, style=TRAINED)
        text.append("»" * marks, f"bold {TRAINED}")
    return text


def _append(text: Text, tokens: list[Token], *, ids: bool, style: str = "") -> None:
    for token in tokens:
        shown = visible(token.text.replace("\r", "␍")).replace("\n", "↵\n").replace("\t", "⇥")
        text.append(shown, f"bold {style or SPECIAL}" if token.is_special else style)
        if ids:
            text.append(f"[{token.id}]", QUIET)


def audit_lines(numbers: Audit, name: str) -> Iterator[str]:
    """Return everything that the audit found, with the first examples."""
    yield f"{name}: {kept(numbers)}"
    for cause, found in (numbers.dropped_rows | numbers.dropped_samples | {"truncated": numbers.truncated}).items():
        yield from _example(cause, found)
    yield f"{name}: {trained(numbers)}"
    yield from _example("without a stop token at their end", numbers.without_stop)
    for oddity in oddities(numbers):
        yield f"  {oddity}"


def histogram_lines(numbers: Audit, name: str, max_length: int) -> Iterator[str]:
    """Draw how long the samples are, and how much of them trains."""
    yield f"{name}: samples by length in tokens"
    mark = (max_length, f"data.max_length={max_length:,}")
    yield from (f"  {line}" for line in text_bars(numbers.lengths, mark=mark))
    yield f"{name}: samples by trained tokens"
    yield from (f"  {line}" for line in text_bars(numbers.supervised_tokens))


def _example(cause: str, found: Found) -> Iterator[str]:
    if found.count:
        yield f"  {cause}: {found}"
