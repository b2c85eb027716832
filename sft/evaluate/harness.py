"""Let EleutherAI's lm-evaluation-harness ask the model its tasks: `+evaluate.harness=[gsm8k,ifeval]`."""

from __future__ import annotations

from pathlib import Path

import torch

from sft.errors import InputError
from sft.evaluate.options import Options
from sft.generate.answer import open_model
from sft.parallel.world import World, log


def ask_harness(
    options: Options, source: Path, world: World, *, trust_remote_code: bool
) -> dict[str, dict[str, float]]:
    """Return what the harness measures of the model directory: {"harness/gsm8k": {"exact_match/strict-match": 0.5}}.

    One rank, with the whole model on its device. Raises InputError for a task that is not known or cannot be read.
    """
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    assert options.harness is not None
    tasks = TaskManager(include_path=options.harness_path)
    if unknown := [name for name in options.harness if name not in tasks.all_tasks]:
        raise InputError(
            f"evaluate.harness: {', '.join(unknown)} is no task of lm-eval {lm_eval.__version__} (lm-eval ls tasks "
            "lists them); YAML files of your own are found by evaluate.harness_path=DIR."
        )
    model, tokenizer = open_model(source, device=world.device, trust_remote_code=trust_remote_code)
    speaker = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=options.batch_size)
    has_template = bool(tokenizer.chat_template)
    log.info(
        "lm-eval %s: questions %s", lm_eval.__version__, "in the chat template" if has_template else "as plain text"
    )
    try:
        with torch.no_grad():
            found = lm_eval.simple_evaluate(
                model=speaker,
                tasks=list(options.harness),
                task_manager=tasks,
                limit=options.harness_limit,
                apply_chat_template=has_template,
            )
    except OSError as error:  # a data set that is neither here nor to be had
        raise InputError(
            f"evaluate.harness: the rows of {', '.join(options.harness)} cannot be read ({error}); without a network, "
            "download them beforehand, or give tasks of your own over local files: evaluate.harness_path=DIR."
        ) from error
    assert found is not None, "on rank 0 there are results"
    return {f"harness/{task}": numbers_in(result) for task, result in found["results"].items()}


def numbers_in(result: dict[str, object]) -> dict[str, float]:
    """Return the numbers of one task; the harness names them `metric,filter`."""
    return {
        name.removesuffix(",none").replace(",", "/"): float(value)
        for name, value in result.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "," in name
    }
