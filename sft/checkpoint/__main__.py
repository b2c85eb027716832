"""List the checkpoints of a run: whether each is what was written, and what it can be used for.

python -m sft.checkpoint list <run>
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sft.checkpoint.find import problems_of
from sft.checkpoint.ledger import kind_of
from sft.checkpoint.manifest import CheckpointError, read_manifest
from sft.config.secrets import presentable
from sft.config.streams import steady_streams
from sft.files import RunDir, step_of

USES = {
    "STATE": "resume",
    "SAMPLER": "load, promote, init_from_checkpoint",
    "BOTH": "resume, load, promote, init_from_checkpoint",
}


def main() -> int:
    """Print the table. Returns 0 if every checkpoint is good, 1 if one is damaged, 2 if there is none."""
    steady_streams()
    parser = argparse.ArgumentParser(prog="python -m sft.checkpoint", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="list")
    parser_of_list = commands.add_parser("list", help="read every file of every checkpoint of a run")
    parser_of_list.add_argument("run", type=Path, help="the run directory (trainer.default_local_dir)")
    run_dir: Path = parser.parse_args().run
    checkpoints = RunDir(run_dir).checkpoints()
    if not checkpoints:
        told = f"error: {run_dir} holds no checkpoint (global_step_N); give a run directory."
        print(presentable(told), file=sys.stderr)
        return 2
    table = Table("step", "kind", "samples", "size", "written by", "verified", "good for")
    damaged = 0
    for checkpoint in checkpoints:
        problems = problems_of(checkpoint)
        damaged += bool(problems)
        verified = escape(presentable("; ".join(problems))) or "yes"
        table.add_row(*_facts(checkpoint), verified, "nothing" if problems else _uses(checkpoint))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 1 if damaged else 0


def _facts(checkpoint: Path) -> list[str]:
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointError:
        return [str(step_of(checkpoint)), "?", "?", "?", "?"]
    size = sum(facts["size"] for facts in manifest["files"].values())
    ranks = manifest["world_size"]
    return [
        str(manifest["step"]),
        escape(presentable(kind_of(manifest))),
        f"{manifest['state']['samples_seen']:,}",
        f"{size / 1e6:,.1f} MB",
        f"{ranks} rank{'s' * (ranks > 1)}",
    ]


def _uses(checkpoint: Path) -> str:
    return USES[kind_of(read_manifest(checkpoint))]


if __name__ == "__main__":
    sys.exit(main())
