"""Any prompts and responses -> parquet that serves SFT and RL alike.

    python -m data_preprocess.jsonl --local_dataset_path PATH --local_dir OUT
    python -m data_preprocess.jsonl --local_dataset_path PATH --prompt_key question --response_key completion

Columns prompt and response, each text or a list of messages; rows without a prompt column are read from the column
messages. A column --ground_truth_key, where one is named, is what RL compares a reply with; without it the response
is the reference for a judge. Questions with worked solutions: data_preprocess.prepare_informal_math.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from data_preprocess.chat import conversation
from data_preprocess.common import corpus_parser, run
from data_preprocess.exchange import Exchange, text


def to_exchange(
    raw: dict[str, Any],
    *,
    prompt_key: str = "prompt",
    response_key: str = "response",
    messages_key: str = "messages",
    ground_truth_key: str | None = None,
) -> Exchange:
    """Return the prompt and the response, or the conversation, of a row."""
    ground_truth = None if ground_truth_key is None else text(raw, ground_truth_key)
    if raw.get(prompt_key) is None and raw.get(messages_key) is not None:
        messages = raw[messages_key]
    else:
        messages = [*_messages(raw, prompt_key, "user"), *_messages(raw, response_key, "assistant")]
    return conversation(messages, raw, ability="instruction", ground_truth=ground_truth)


def _messages(raw: dict[str, Any], key: str, role: str) -> list[Any]:
    return raw[key] if isinstance(raw.get(key), list) else [{"role": role, "content": text(raw, key)}]


def main() -> None:
    parser = corpus_parser(__doc__, "jsonl")
    parser.add_argument("--prompt_key", default="prompt", help="column of the prompt (%(default)s)")
    parser.add_argument("--response_key", default="response", help="column of the response (%(default)s)")
    parser.add_argument("--messages_key", default="messages", help="column of the conversation (%(default)s)")
    parser.add_argument("--ground_truth_key", help="column of the answer that a reply can be compared with")
    arguments = parser.parse_args()
    keys = ("prompt_key", "response_key", "messages_key", "ground_truth_key")
    run(arguments, partial(to_exchange, **{key: getattr(arguments, key) for key in keys}))


if __name__ == "__main__":
    main()
