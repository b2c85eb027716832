"""Conversations -> parquet that serves SFT and RL alike.

    python -m data_preprocess.multiturn --local_dataset_path PATH --local_dir OUT
    python -m data_preprocess.multiturn --demo

A column messages (or conversations, or conversation) holds {role, content, tool_calls, ...} or {from, value}; tools,
system, enable_thinking and chat_template_kwargs are kept where they are. The prompt is all before the last reply.
Without a source, as with --demo, a few conversations written for this purpose: enough to see a run start.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from data_preprocess.chat import conversation
from data_preprocess.common import corpus_parser, run
from data_preprocess.demo import CONVERSATIONS
from data_preprocess.exchange import Exchange, UnusableRowError
from data_preprocess.source import Rows

MESSAGES_KEYS = ("messages", "conversations", "conversation")


def to_exchange(raw: dict[str, Any], *, messages_key: str | None = None) -> Exchange:
    """Return the last reply of the conversation and all before it.

    messages_key: None takes the first of MESSAGES_KEYS.
    """
    candidates = MESSAGES_KEYS if messages_key is None else (messages_key,)
    found = [key for key in candidates if raw.get(key) is not None]
    if not found:
        raise UnusableRowError(f"no column {' or '.join(map(repr, candidates))}", f"found {sorted(raw)}")
    return conversation(raw[found[0]], raw)


def demo() -> dict[str, Rows]:
    """Return the conversations written for this purpose, as a source."""
    named = [(f"demo:{number}", {"messages": messages}) for number, messages in enumerate(CONVERSATIONS)]
    return {"train": Rows(lambda: iter(named), len(named))}


def main() -> None:
    parser = corpus_parser(__doc__, "multiturn")
    parser.add_argument("--messages_key", help=f"column of the conversation ({', '.join(MESSAGES_KEYS)})")
    parser.add_argument("--demo", action="store_true", help="write the demo set")
    arguments = parser.parse_args()
    source = None
    if arguments.demo or (arguments.local_dataset_path is None and arguments.data_source is None):
        if arguments.local_dataset_path is not None:
            parser.error("--demo has its own rows; leave out --local_dataset_path.")
        source = demo()
        print(f"the demo set: {len(CONVERSATIONS)} short conversations, written for it")
    run(arguments, partial(to_exchange, messages_key=arguments.messages_key), source)


if __name__ == "__main__":
    main()
