"""GSM8K -> train.parquet and test.parquet, which serve SFT and RL alike.

    python -m data_preprocess.gsm8k --local_dataset_path DIR --local_dir OUT

Without --local_dataset_path the rows come from openai/gsm8k on the Hugging Face hub.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_preprocess.common import read_split, write_parquet

HUB_ID = "openai/gsm8k"
INSTRUCTION = ' Let\'s think step by step and output the final answer after "####".'
ANSWER_MARK = "#### "


def to_row(raw: dict[str, Any], *, split: str, index: int, where: str) -> dict[str, Any]:
    """One row for both stages: `messages` is what SFT trains, `prompt` and `reward_model` what RL samples and scores.

    messages[:-1] == prompt. Raises ValueError naming `where` for a row without question or final answer.
    """
    question, answer = raw.get("question"), raw.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError(f"{where}: expected the texts question and answer, found {raw!r:.200}.")
    prompt = [{"role": "user", "content": question + INSTRUCTION}]
    return {
        "data_source": HUB_ID,
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": final_answer(answer, where)},
        "extra_info": {"split": split, "index": index, "question": question, "answer": answer},
        "messages": [*prompt, {"role": "assistant", "content": answer}],
    }


def final_answer(answer: str, where: str) -> str:
    """The number after the last "#### ", without thousands separators."""
    _, mark, number = answer.rpartition(ANSWER_MARK)
    number = number.strip().replace(",", "")
    if not mark or not number:
        raise ValueError(f"{where}: no final answer after {ANSWER_MARK!r} in {answer[-80:]!r}.")
    return number


def convert(directory: Path | None, out: Path) -> dict[str, int]:
    """Writes out/train.parquet and out/test.parquet, once all rows are proven good; returns the rows of each."""
    splits = {}
    for split in ("train", "test"):
        raws = read_split(directory, split, hub_id=HUB_ID, config="main")
        splits[split] = [to_row(raw, split=split, index=index, where=where) for index, (where, raw) in enumerate(raws)]
    for split, rows in splits.items():
        write_parquet(rows, out / f"{split}.parquet")
    return {split: len(rows) for split, rows in splits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local_dataset_path", type=Path, help="directory with {train,test}.jsonl or .parquet")
    parser.add_argument("--local_dir", type=Path, default=Path("~/data/gsm8k"), help="where to write (%(default)s)")
    arguments = parser.parse_args()
    out = arguments.local_dir.expanduser()
    try:
        counts = convert(arguments.local_dataset_path, out)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    for split, rows in counts.items():
        print(f"{out / split}.parquet: {rows} rows")


if __name__ == "__main__":
    main()
