"""What the pages for contributors say of the project is so."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.launch import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])


def read(name: str) -> str:
    return (REPOSITORY / name).read_text()


def yaml_of(name: str) -> Any:
    return yaml.safe_load(read(name))


def test_the_floors_of_the_design_are_those_that_are_checked():
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    checked = [sorted(floor.split(" | ")) for floor in contracts[0]["layers"]]
    drawn = re.findall(r"^\| (\d) \| (.*) \|$", read("docs/design.md"), re.MULTILINE)
    assert [sorted(re.findall(r"`([\w.]+)`", rooms)) for _, rooms in drawn] == checked
    assert [int(number) for number, _ in drawn] == list(range(len(checked), 0, -1))


def test_the_design_draws_every_room():
    drawing = read("docs/design.md").partition("## The rooms")[2].partition("## The floors")[0]
    rooms = {path.name for path in (REPOSITORY / "sft").iterdir() if path.name not in ("__pycache__", "py.typed")}
    names = set(re.findall(r"[\w.]+", drawing))
    assert rooms - {"__init__.py"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    text = page.read_text()
    named = re.findall(r"`((?:sft|conf|tests|docs|data_preprocess|benchmarks|scripts)/[\w/.-]*)", text)
    linked = [page.parent / link for link in re.findall(r"\]\((?!\w+:)([^)#]+)", text)]
    assert [path for path in [*(REPOSITORY / name for name in named), *linked] if not path.exists()] == []


def test_the_workflow_runs_what_a_laptop_runs():
    steps = yaml_of(".github/workflows/ci.yml")["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert "make test" in read(".ci/run") and "make lint" in read(".ci/run")


def test_a_report_of_a_bug_brings_its_run_json():
    fields = {field["id"]: field for field in yaml_of(".github/ISSUE_TEMPLATE/bug.yml")["body"]}
    assert fields["run_json"]["validations"]["required"]
    assert "run.json" in read(".github/ISSUE_TEMPLATE/wish.yml")


def test_hooks_are_our_own_tools():
    repos = yaml_of(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    for hook in repos[0]["hooks"]:
        for path in re.findall(r"tests/\S+\.py", hook["entry"]):
            assert (REPOSITORY / path).exists(), path
