r"""MATH, or any questions with worked solutions -> parquet that serves SFT and RL alike.

    python -m data_preprocess.prepare_informal_math --local_dataset_path DIR --local_dir OUT
    python -m data_preprocess.prepare_informal_math --dataset ORG/NAME --question_key question --solution_key answer

Columns problem and solution; level and type are kept where they are. The final answer is the column --answer_key
where one is named, else the last \boxed{...} of the solution, else what follows its last "#### ". Without a source
the rows come from DigitalLearningGmbH/MATH-lighteval on the Hugging Face hub.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from data_preprocess.common import corpus_parser, run
from data_preprocess.exchange import Exchange, UnusableRowError, after_hashes, last_boxed, text

HUB_ID = "DigitalLearningGmbH/MATH-lighteval"
BOXED_INSTRUCTION = r" Let's think step by step and output the final answer within \boxed{}."
HASHES_INSTRUCTION = ' Let\'s think step by step and output the final answer after "####".'
FACTS = ("level", "type")


def to_exchange(
    raw: dict[str, Any],
    *,
    question_key: str = "problem",
    solution_key: str = "solution",
    answer_key: str | None = None,
    instruction: str | None = None,
) -> Exchange:
    """Return the question with an instruction, the solution whole, scored by its final answer.

    instruction: None asks for the final answer in the way the solution gives it
    """
    question, solution = text(raw, question_key), text(raw, solution_key)
    answer, asked = last_boxed(solution), BOXED_INSTRUCTION
    if answer is None:
        answer, asked = after_hashes(solution), HASHES_INSTRUCTION
    if answer is None:
        asked = ""  # the solution shows no way to mark the answer
    if answer_key is not None:
        answer = str(raw[answer_key]) if isinstance(raw.get(answer_key), int | float) else text(raw, answer_key)
    if answer is None:
        raise UnusableRowError(r"no final answer in \boxed{} or after '#### '", f"found {solution[-80:]!r}")
    return Exchange(
        prompt=[{"role": "user", "content": question + (asked if instruction is None else instruction)}],
        reply={"role": "assistant", "content": solution},
        question=question,
        answer=solution,
        ability="math",
        ground_truth=answer,
        style="rule",
        facts={key: str(raw[key]) for key in FACTS if raw.get(key) is not None},
    )


def main() -> None:
    parser = corpus_parser(__doc__, "math", hub_id=HUB_ID)
    parser.add_argument("--question_key", default="problem", help="column of the question (%(default)s)")
    parser.add_argument("--solution_key", default="solution", help="column of the worked solution (%(default)s)")
    parser.add_argument("--answer_key", help="column of the final answer; without it the solution is searched")
    parser.add_argument("--instruction", help="put after each question; by default it asks for the solution's mark")
    arguments = parser.parse_args()
    keys = ("question_key", "solution_key", "answer_key", "instruction")
    run(arguments, partial(to_exchange, **{key: getattr(arguments, key) for key in keys}))


if __name__ == "__main__":
    main()
