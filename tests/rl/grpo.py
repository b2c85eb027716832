"""Two optimizer steps of TRL's GRPO from a model directory, on the CPU.

    python grpo.py MODEL_DIR ROWS.parquet REPORT.json

Runs under a python that has TRL; imports nothing of this project, as a user's RL script would not.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

MAX_COMPLETION_TOKENS = 24


def main(model_dir: str, rows: str, report: Path) -> None:
    prompts = Dataset.from_parquet(rows).select_columns(["prompt", "reward_model"])
    said: list[str] = []

    def is_right(completions: list, reward_model: list, **_: object) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        said.extend(texts)
        # Where all answers of a prompt are right nothing would be learned: length tells them apart.
        return [
            (told["ground_truth"] in text) - 0.01 * len(text) for told, text in zip(reward_model, texts, strict=True)
        ]

    with tempfile.TemporaryDirectory() as home:
        trainer = GRPOTrainer(
            model=model_dir,
            reward_funcs=is_right,
            args=GRPOConfig(
                output_dir=home,
                max_steps=2,
                per_device_train_batch_size=4,
                num_generations=4,
                max_completion_length=MAX_COMPLETION_TOKENS,
                temperature=1.5,
                learning_rate=1e-3,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                bf16=False,
            ),
            train_dataset=prompts,
        )
        before = [weight.detach().clone() for weight in trainer.model.parameters()]
        trainer.train()
    after = list(trainer.model.parameters())
    steps = [entry for entry in trainer.state.log_history if "completions/clipped_ratio" in entry]
    told = {
        "stop_token_ids": trainer.eos_token_ids,
        "chat_template": trainer.processing_class.chat_template,
        "prompt": trainer.processing_class.apply_chat_template(
            prompts[0]["prompt"], add_generation_prompt=True, tokenize=False
        ),
        "moved_weights": sum(not torch.equal(one, other) for one, other in zip(before, after, strict=True)),
        "cut_off_share": [entry["completions/clipped_ratio"] for entry in steps],
        "mean_tokens": [entry["completions/mean_length"] for entry in steps],
        "completions": said,
    }
    report.write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
