"""Ask a model: one prompt, a file of prompts, or a conversation in the terminal.

    python -m sft.generate --model runs/gsm8k --prompt "What is 12 x 12?"
    python -m sft.generate --model runs/gsm8k --prompts questions.jsonl --out answers.jsonl
    python -m sft.generate --model runs/gsm8k        # a conversation; Ctrl-D ends it

A file has a prompt per line (*.txt), or an object per line with "prompt" or "messages" (*.jsonl). The chat template
and the stop tokens are the model's own. Exit codes: 0, or 2 with a message.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sft.config.cli import without_collections
from sft.config.secrets import presentable
from sft.config.streams import steady_streams
from sft.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Read argv, answer, and return the exit code."""
    steady_streams()
    parser = argparse.ArgumentParser(
        prog="python -m sft.generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a model directory, such as a run's")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--prompt", metavar="TEXT", help="one question; the answer goes to stdout")
    asked.add_argument("--prompts", type=Path, metavar="FILE", help="*.txt or *.jsonl; answers come as JSONL")
    parser.add_argument("--out", type=Path, metavar="FILE", help="for --prompts: where the JSONL goes; default: stdout")
    parser.add_argument("--system", metavar="TEXT", help="a system message before every question")
    parser.add_argument(
        "--chat-template-kwargs",
        type=_object,
        default={},
        metavar="JSON",
        help="variables of the chat template, such as '{\"enable_thinking\": false}'",
    )
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    parser.add_argument("--max-new-tokens", type=_count, default=256, metavar="N", help="default: 256")
    parser.add_argument("--temperature", type=_at_least_0, default=0.0, metavar="T", help="default: 0, the likeliest")
    parser.add_argument("--top-p", type=_share, default=1.0, metavar="P", help="default: 1")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of what is drawn at random; default: 1")
    parser.add_argument("--batch-size", type=_count, default=16, metavar="N", help="prompts at a time; default: 16")
    parser.add_argument("--trust-remote-code", action="store_true", help="run python files that come with the model")
    options = parser.parse_args(arguments)
    if options.out and not options.prompts:
        parser.error("--out goes with --prompts")
    if options.raw and (options.system or options.chat_template_kwargs):
        parser.error("--system and --chat-template-kwargs are for the chat template, which --raw goes without")
    with without_collections():
        from sft.generate.ask import ask  # torch takes seconds to import, which --help need not

    try:
        ask(options)
    except InputError as error:
        print(presentable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is no object of JSON")
    return value


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def _at_least_0(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 0")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
