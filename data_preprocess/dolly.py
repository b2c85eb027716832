"""Dolly -> parquet that serves SFT and RL alike.

    python -m data_preprocess.dolly --local_dataset_path PATH --local_dir OUT

Columns instruction, context (may be empty), response and category, which becomes the ability. Without a source the
rows come from databricks/databricks-dolly-15k on the Hugging Face hub.
"""

from __future__ import annotations

from typing import Any

from data_preprocess.common import corpus_parser, run
from data_preprocess.exchange import Exchange, joined, text

HUB_ID = "databricks/databricks-dolly-15k"


def to_exchange(raw: dict[str, Any]) -> Exchange:
    """Return the instruction, an empty line and the context as the user's words; the response as the reply."""
    question, answer = joined(raw, "instruction", "context"), text(raw, "response")
    return Exchange(
        prompt=[{"role": "user", "content": question}],
        reply={"role": "assistant", "content": answer},
        question=question,
        answer=answer,
        ability=text(raw, "category", optional=True) or "instruction",
        ground_truth=answer,
    )


def main() -> None:
    run(corpus_parser(__doc__, "dolly", hub_id=HUB_ID).parse_args(), to_exchange)


if __name__ == "__main__":
    main()
