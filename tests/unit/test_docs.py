"""The pages hold together: links lead somewhere, the site has every page, messages are those of the code."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md")])


def prose(page: Path) -> str:
    """Return a page without its blocks of code: neither a heading nor a link stands there."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def broken(page: Path) -> Iterator[str]:
    """Yield what is wrong with each relative link of a page."""
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: no such file"
        elif DOCS in page.parents and DOCS not in target.parents:
            yield f"{link}: the site has only what is in docs/; name the file in backticks"
        elif anchor and anchor not in anchors(target):
            yield f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [*broken(page)] == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `a`, two\n[a](no.md) [b](#one-a-two) [c](#one)\n```\n[d](no.md)\n# no heading\n```\n[e](#no-heading)\n"
    )
    assert [*broken(page)] == ["no.md: no such file", "#one: no such heading", "#no-heading: no such heading"]


def pages_of(navigation: Any) -> Iterator[str]:
    if isinstance(navigation, str):
        yield navigation
    else:
        for inner in navigation.values() if isinstance(navigation, dict) else navigation:
            yield from pages_of(inner)


def test_the_site_has_every_page_once() -> None:
    navigation = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    assert sorted(pages_of(navigation)) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


HOLE = "\0"


@cache
def texts_of_the_code() -> tuple[str, ...]:
    """Return every text in `sft`, with a HOLE for what is filled in."""
    found = []
    for file in (REPOSITORY / "sft").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values))  # pyright: ignore
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sdr]|%\.\d[fg]", HOLE, node.value))
    return tuple(found)


def messages(page: Path) -> list[str]:
    """Return what the tables of a page quote as messages: the first cells that are code, under the head `message`."""
    tables = re.findall(r"^\| message \|.*\n\|---.*\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE)
    return [quoted for table in tables for quoted in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)]


def is_said(message: str) -> bool:
    """Return True if each part of a message stands in a text of the code; `...` is between parts."""
    parts = [part.strip(" ():;,") for part in message.split("...")]
    return any(parts) and all(any(part in text for text in texts_of_the_code()) for part in parts)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_messages_are_those_of_the_code(page: Path) -> None:
    assert [message for message in messages(page) if not is_said(message)] == []


def test_a_message_that_nobody_says_is_found() -> None:
    assert is_said("ulysses_sequence_parallel_size=... must divide the ... attention heads of")
    assert not is_said("ulysses_sequence_parallel_size=... must divide the ... attention tails of")


def test_the_image_is_made_of_what_is_there() -> None:
    text = (REPOSITORY / "scripts" / "docker" / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()}
    assert all((REPOSITORY / name).exists() for name in copied)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "pyproject.toml"}
    assert needed | {*project["project"]["license-files"], "constraints.txt"} == copied
