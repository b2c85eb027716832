"""This module holds the commands that `pip install` gives: `sft-train` is `python -m sft.fsdp_sft_trainer`."""

from __future__ import annotations

from runpy import run_module


def train() -> None:
    _run("sft.fsdp_sft_trainer")


def inspect() -> None:
    _run("sft.inspect")


def evaluate() -> None:
    _run("sft.evaluate")


def generate() -> None:
    _run("sft.generate")


def export() -> None:
    _run("sft.export")


def tokenise() -> None:
    _run("sft.tokenise")


def promote() -> None:
    _run("sft.checkpoint.promote_command")


def _run(module: str) -> None:
    run_module(module, run_name="__main__")
