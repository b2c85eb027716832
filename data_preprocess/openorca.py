"""OpenOrca -> parquet that serves SFT and RL alike.

    python -m data_preprocess.openorca --local_dataset_path PATH --local_dir OUT

Columns system_prompt (may be empty), question, response and id, which is kept. Without a source the rows come from
Open-Orca/OpenOrca on the Hugging Face hub.
"""

from __future__ import annotations

from typing import Any

from data_preprocess.common import corpus_parser, run
from data_preprocess.exchange import Exchange, text

HUB_ID = "Open-Orca/OpenOrca"


def to_exchange(raw: dict[str, Any]) -> Exchange:
    """System prompt and question, then the response as the reply."""
    system, row_id = text(raw, "system_prompt", optional=True), text(raw, "id", optional=True)
    question, answer = text(raw, "question"), text(raw, "response")
    return Exchange(
        prompt=[
            *([{"role": "system", "content": system}] if system else []),
            {"role": "user", "content": question},
        ],
        reply={"role": "assistant", "content": answer},
        question=question,
        answer=answer,
        ability="instruction",
        ground_truth=answer,
        facts={"id": row_id} if row_id else {},
    )


def main() -> None:
    run(corpus_parser(__doc__, "openorca", hub_id=HUB_ID).parse_args(), to_exchange)


if __name__ == "__main__":
    main()
