"""Write one HTML page of samples and numbers, which needs nothing beside itself: no network, no framework."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from sft.config.visible import visible, visible_line
from sft.files import explaining_disk, replace_file
from sft.inspect.bars import histogram
from sft.inspect.tokens import SeenSample, Token

TEMPLATE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
NUMBER = re.compile(r"(?<![\w.=-])(\d[\d,]*(?:\.\d+)?%?)(?![\w.])")
ROW, BAR = 18, 300  # pixels: height of a bar with its gap, length of the longest


def write_page(
    path: Path,
    samples: Iterable[SeenSample],
    *,
    title: str,
    numbers: Sequence[str],
    histograms: dict[str, np.ndarray],
) -> None:
    """Write the page. numbers: lines of text; histograms: values by the heading of their drawing."""
    rows = [_row(sample) for sample in samples]
    page = TEMPLATE.substitute(
        title=escape(visible_line(title)),
        numbers="\n".join(_card(name, told) for name, told in cards(numbers).items()),
        histograms="\n".join(f"<h2>{escape(name)}</h2>\n{drawing(values)}" for name, values in histograms.items()),
        count=f"{len(rows):,}",
        rows="\n".join(rows),
    )
    with explaining_disk(f"inspect.html={path}", "Make room there, or name another file."):
        replace_file(path, page.encode())


def cards(numbers: Sequence[str]) -> dict[str, list[str]]:
    """Group lines by the name before their first colon; an indented line goes on with the one before."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in numbers:
        before, colon, told = line.partition(": ")
        if line.startswith(" ") or not colon:
            told = line.strip()
        else:
            name = before
        found.setdefault(name, []).append(told)
    return found


def _card(name: str, told: Sequence[str]) -> str:
    lines = "".join(f"<p>{_with_bold_numbers(line)}</p>" for line in told)
    return f"<article><h3>{escape(name)}</h3>{lines}</article>"


def _with_bold_numbers(text: str) -> str:
    parts = NUMBER.split(text)  # every second one is a number
    return "".join(f"<strong>{escape(part)}</strong>" if n % 2 else escape(part) for n, part in enumerate(parts))


def drawing(values: np.ndarray) -> str:
    """Draw a histogram as SVG."""
    bars = histogram(values)
    most = max(bar.count for bar in bars)
    parts = []
    for n, bar in enumerate(bars):
        length = BAR * bar.count / most
        parts.append(
            f'<text x="95" y="{n * ROW + 13}" text-anchor="end">{bar.low:,}-{bar.high:,}</text>'
            f'<rect x="102" y="{n * ROW + 2}" width="{length:.1f}" height="{ROW - 4}"></rect>'
            f'<text x="{108 + length:.1f}" y="{n * ROW + 13}">{bar.count:,}</text>'
        )
    return f'<svg viewBox="0 0 {BAR + 170} {ROW * len(bars)}" role="img">{"".join(parts)}</svg>'


def _row(sample: SeenSample) -> str:
    text = "".join(map(_token, sample.tokens))
    counts = f"{len(sample.tokens):,} tokens<br>{sample.supervised_tokens:,} trained"
    return f"<tr><td>{escape(sample.where)}<br>{counts}</td><td><pre>{text}</pre></td></tr>"


def _token(token: Token) -> str:
    kinds = " ".join(["t"] * (token.weight > 0) + ["s"] * token.is_special)
    attribute = f' class="{kinds}"' if kinds else ""
    text = escape(visible(token.text)).replace("\n", "↵\n")
    return f'<i{attribute} title="{token.id} · weight {token.weight:g}">{text}</i>'
