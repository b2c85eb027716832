"""What the README says of the code is so."""

import re

import pytest

from tests.launch import REPOSITORY


def lines_of(text):
    """Lines of all files that the text names, as `sft/{inputs,build}.py` or `conf/data/*.yaml`."""
    total = 0
    for before, inner, after in re.findall(r"`((?:sft|conf)/[\w/.]*)(?:\{([\w,]+)\})?([\w/.*]*)`", text):
        files = [file for name in inner.split(",") for file in REPOSITORY.glob(f"{before}{name}{after}")]
        assert len(files) >= len(inner.split(",")), (before, inner, after)
        total += sum(len(file.read_text().splitlines()) for file in files)
    return total


def test_the_lines_to_read_are_counted():
    section = (REPOSITORY / "README.md").read_text().partition("## Reading the code")[2].partition("\nImports")[0]
    all_lines, first = (int(number.replace(",", "")) for number in re.findall(r"\d,\d{3}", section))
    items = re.findall(r"^\d\. .*$", section, re.MULTILINE)
    assert all_lines == pytest.approx(lines_of("\n".join(items)), rel=0.1)
    assert first == pytest.approx(lines_of("\n".join(items[:3])), rel=0.1)
