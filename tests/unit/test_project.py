"""What the pages for contributors say of the project is so."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.launch import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])


def read(name: str) -> str:
    return (REPOSITORY / name).read_text()


def yaml_of(name: str) -> Any:
    return yaml.safe_load(read(name))


def test_the_floors_of_the_design_are_those_that_are_checked():
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    checked = [sorted(re.split(r" [|:] ", floor)) for floor in contracts[0]["layers"]]
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


def requirements(name: str = "") -> dict[str, Requirement]:
    """What the package needs, or one of its extras, by normalised name."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    texts = project["optional-dependencies"][name] if name else project["dependencies"]
    return {canonicalize_name(found.name): found for found in map(Requirement, texts)}


def test_what_is_tested_is_what_may_be_installed():
    pinned = dict(line.split("==") for line in read("constraints.txt").splitlines() if "==" in line)
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    for name, requirement in requirements().items():
        assert requirement.specifier.contains(pinned[name]), (name, pinned[name])
    for name in ("torch", "transformers"):  # the newest ones that were tested, and no others
        major, minor, _ = (int(part) for part in pinned[name].split("."))
        assert not requirements()[name].specifier.contains(f"{major}.{minor + 1}.0"), name


def test_the_extra_all_has_what_installs_everywhere():
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    built_for_one_gpu, for_contributors = {"liger", "flash-attn"}, {"dev", "docs"}
    (everything,) = requirements("all").values()
    assert everything.extras == extras.keys() - built_for_one_gpu - for_contributors - {"all"}
    listed = re.search(r"^Extras: `([\w -]+)`, and `all`", read("README.md"), re.MULTILINE)
    assert listed and set(listed[1].split()) == extras.keys() - for_contributors - {"all"}


def test_a_citation_names_this_version():
    assert yaml_of("CITATION.cff")["version"] == tomllib.loads(read("pyproject.toml"))["project"]["version"]


def test_hooks_are_our_own_tools():
    repos = yaml_of(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    for hook in repos[0]["hooks"]:
        for path in re.findall(r"tests/\S+\.py", hook["entry"]):
            assert (REPOSITORY / path).exists(), path
