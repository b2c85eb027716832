"""What tests share stands in tests/*.py and in fixtures; no test file is read by another one."""

from __future__ import annotations

import ast

import pytest

from tests.launch import REPOSITORY

FILES = sorted((REPOSITORY / "tests").rglob("*.py"))


def imports_of(source: str) -> list[str]:
    """Return every module that a source imports, with each name as if it were a module itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a helper stands"
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def is_test(module: str) -> bool:
    """Return True for the name of a test file or of a conftest, or of something in one."""
    parts = module.split(".")
    return parts[0] == "tests" and any(part.startswith("test_") or part == "conftest" for part in parts[1:])


def test_no_test_imports_from_another_test():
    found = {
        str(path.relative_to(REPOSITORY)): modules
        for path in FILES
        if (modules := [module for module in imports_of(path.read_text()) if is_test(module)])
    }
    assert not found, "move what is shared into tests/assets.py or a module beside it, fixtures into conftest.py"


@pytest.mark.parametrize(
    "source",
    [
        "from tests.unit.model.test_load import SIZES",
        "from tests.unit.model import test_load",
        "import tests.dist.conftest",
        "def f():\n    from tests.conftest import REPOSITORY",
    ],
)
def test_an_import_from_a_test_is_seen(source: str):
    assert any(is_test(module) for module in imports_of(source))
    assert not any(is_test(module) for module in imports_of("from tests.assets import tiny_model_dir"))
