"""GSM8K -> train.parquet and test.parquet, which serve SFT and RL alike.

    python -m data_preprocess.gsm8k --local_dataset_path DIR --local_dir OUT

Columns question and answer, which ends in "#### " and the number. Without --local_dataset_path the rows come from
openai/gsm8k on the Hugging Face hub.
"""

from __future__ import annotations

from typing import Any

from data_preprocess.common import corpus_parser, run
from data_preprocess.exchange import Exchange, UnusableRowError, after_hashes, text

HUB_ID = "openai/gsm8k"
INSTRUCTION = ' Let\'s think step by step and output the final answer after "####".'


def to_exchange(raw: dict[str, Any]) -> Exchange:
    """Return the question with INSTRUCTION, the answer whole, scored by its last number."""
    question, answer = text(raw, "question"), text(raw, "answer")
    number = after_hashes(answer)
    if number is None:
        raise UnusableRowError("no final answer after '#### '", f"found {answer[-80:]!r}")
    return Exchange(
        prompt=[{"role": "user", "content": question + INSTRUCTION}],
        reply={"role": "assistant", "content": answer},
        question=question,
        answer=answer,
        ability="math",
        ground_truth=number,
        style="rule",
    )


def main() -> None:
    parser = corpus_parser(__doc__, "gsm8k", hub_id=HUB_ID, hub_config="main")
    run(parser.parse_args(), to_exchange)


if __name__ == "__main__":
    main()
