"""The command line that all corpora share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from data_preprocess.convert import VAL_FRACTION, ToExchange, convert
from data_preprocess.source import Rows, open_source


def corpus_parser(
    doc: str | None, name: str, *, hub_id: str | None = None, hub_config: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser of the shared options; a corpus adds its own.

    name: of the corpus and of the directory in ~/data where it is written by default
    hub_id, hub_config: what is read by default, and what the column data_source says; None: the name
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(name=name)
    add = parser.add_argument
    add("--local_dataset_path", type=Path, metavar="PATH", help="file or directory of .parquet, .jsonl or .json")
    add(
        *("--dataset", "--data_source"),
        dest="data_source",
        metavar="ORG/NAME",
        default=hub_id,
        help="hub data set, read where there is no --local_dataset_path; in both cases the text of the column "
        "data_source, by which RL chooses the scorer (default: %(default)s)",
    )
    add("--dataset_config", metavar="NAME", default=hub_config, help="configuration of the hub data set")
    add(
        *("--local_dir", "--local_save_dir"),
        dest="local_dir",
        type=Path,
        metavar="DIR",
        default=Path("~/data", name),
        help="where to write (%(default)s)",
    )
    add("--val_fraction", type=float, metavar="F", help=f"part of an undivided source drawn as test ({VAL_FRACTION})")
    add("--seed", type=int, default=1, help="of that draw (%(default)s)")
    add("--strict", action="store_true", help="refuse a source with unusable rows; without it they are dropped")
    return parser


def run(arguments: argparse.Namespace, to_exchange: ToExchange, source: Mapping[str, Rows] | None = None) -> None:
    """Read, write and report what the command line asks for; exit code 2 for what cannot be read or written.

    source: in place of the one that the command line names
    """
    try:
        source = source or open_source(
            arguments.local_dataset_path, hub_id=arguments.data_source, hub_config=arguments.dataset_config
        )
        convert(
            source,
            to_exchange,
            arguments.local_dir.expanduser(),
            data_source=arguments.data_source or arguments.name,
            val_fraction=arguments.val_fraction,
            seed=arguments.seed,
            strict=arguments.strict,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
