"""Alpaca -> parquet that serves SFT and RL alike.

    python -m data_preprocess.alpaca --local_dataset_path PATH --local_dir OUT

Columns instruction, input (may be empty) and output; system and history, pairs of earlier questions and answers,
where there are any. Without a source the rows come from tatsu-lab/alpaca on the Hugging Face hub.
"""

from __future__ import annotations

from typing import Any

from data_preprocess.common import corpus_parser, run
from data_preprocess.exchange import Exchange, Message, UnusableRowError, encodable, joined, text

HUB_ID = "tatsu-lab/alpaca"


def to_exchange(raw: dict[str, Any]) -> Exchange:
    """Return the instruction, an empty line and the input as the user's words; the output as the reply."""
    system, question, answer = (
        text(raw, "system", optional=True),
        joined(raw, "instruction", "input"),
        text(raw, "output"),
    )
    return Exchange(
        prompt=[
            *([{"role": "system", "content": system}] if system else []),
            *_earlier(raw.get("history") or []),
            {"role": "user", "content": question},
        ],
        reply={"role": "assistant", "content": answer},
        question=question,
        answer=answer,
        ability="instruction",
        ground_truth=answer,
    )


def _earlier(history: Any) -> list[Message]:
    messages = []
    for pair in history if isinstance(history, list) else [history]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(words, str) for words in pair):
            raise UnusableRowError("history is no list of pairs", f"it has {pair!r:.80}")
        asked, answered = map(encodable, pair)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return messages


def main() -> None:
    run(corpus_parser(__doc__, "alpaca", hub_id=HUB_ID).parse_args(), to_exchange)


if __name__ == "__main__":
    main()
