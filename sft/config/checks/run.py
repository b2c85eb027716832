"""What types cannot say: combinations of keys, the number of ranks, and the file system.

Every problem names its keys in full: the door leaves out a problem that names a key it has already complained about.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sft.config.checks.data import mixture_problems
from sft.config.checks.data_files import complaint_about_file
from sft.config.checks.model import model_problems, model_warnings
from sft.config.checks.optim import optim_problems, optim_warnings
from sft.config.checks.outcome import hub_problems, judgement_problems
from sft.config.checks.packages import package_problems
from sft.config.problems import Report, choices, divisors_around, from_here, multiples_around, shown
from sft.config.schema import DataConfig, SftConfig, TrainerConfig


def check(config: SftConfig, world_size: int, report: Report, needs_weights: bool = True) -> None:
    """Report everything about a well-typed configuration that could not run with `world_size` ranks."""
    for problem in (
        *_batch_problems(config, world_size),
        *_home_problems(config),
        *_data_problems(config.data),
        *model_problems(config.model, needs_weights),
        *optim_problems(config.optim),
        *_loss_problems(config),
        *_trainer_problems(config.trainer),
        *judgement_problems(config),
        *hub_problems(config.trainer),
        *package_problems(config),
    ):
        report.problem(problem)
    if Path(config.trainer.default_local_dir).resolve() == Path(config.model.partial_pretrain).resolve():
        report.problem(
            f"trainer.default_local_dir={shown(config.trainer.default_local_dir)} would overwrite "
            "model.partial_pretrain; choose another directory."
        )
    for warning in (*model_warnings(config.model), *optim_warnings(config.optim)):
        report.warn(warning)
    if config.data.balance_dp_token and config.data.max_tokens_per_gpu is not None:
        report.warn("data.balance_dp_token=true has no effect: data.max_tokens_per_gpu already balances tokens.")
    if config.data.curriculum is None and config.data.curriculum_epochs > 1:
        report.warn(f"data.curriculum_epochs={config.data.curriculum_epochs} has no effect: data.curriculum=null.")
    if not config.data.has_val and config.trainer.test_freq > 0:
        report.warn(f"trainer.test_freq={config.trainer.test_freq} has no effect: data.val_files=null.")
    if not config.data.has_val and config.trainer.val_before_train:
        report.warn("trainer.val_before_train=true has no effect: data.val_files=null.")


def _loss_problems(config: SftConfig) -> Iterator[str]:
    kernel = config.model.loss_kernel
    if kernel.startswith("triton") and config.optim.loss == "eaft":
        yield (
            f"model.loss_kernel={kernel} does not know optim.loss=eaft, which needs the 20 largest logits of a row; "
            "set model.loss_kernel=torch."
        )


def _batch_problems(config: SftConfig, world_size: int) -> Iterator[str]:
    data, sp = config.data, config.ulysses_sequence_parallel_size
    if world_size % sp:
        yield (
            f"ulysses_sequence_parallel_size={sp} must divide the number of ranks, {world_size}; "
            f"try {choices(divisors_around(world_size, sp))}."
        )
        return
    copies, groups = config.model.fsdp_config.dp_replicate, world_size // sp
    if groups % copies:
        over = f" / ulysses_sequence_parallel_size={sp}" if sp > 1 else ""
        yield (
            f"model.fsdp_config.dp_replicate={copies} must divide the number of ranks, {world_size}{over}; "
            f"try {choices(divisors_around(groups, copies))}."
        )
    if sp > 1 and not config.use_remove_padding:
        yield (
            f"ulysses_sequence_parallel_size={sp} splits rows of samples that lie end to end, which "
            "use_remove_padding=false does not make; set use_remove_padding=true."
        )
    dp, samples, micro = world_size // sp, data.train_batch_size, data.micro_batch_size_per_gpu
    if samples % dp:
        yield (
            f"data.train_batch_size={samples} must be a multiple of dp={dp} (every rank takes whole samples); "
            f"try {choices(multiples_around(dp, samples))}."
        )
    elif data.max_tokens_per_gpu is None and (samples // dp) % micro:
        yield (
            f"data.train_batch_size={samples} over dp={dp} is {samples // dp} samples per rank, not a multiple of "
            f"data.micro_batch_size_per_gpu={micro}; try data.micro_batch_size_per_gpu="
            f"{choices(divisors_around(samples // dp, micro))}, or data.train_batch_size="
            f"{choices(multiples_around(dp * micro, samples))}."
        )
    if data.max_tokens_per_gpu is not None and data.max_tokens_per_gpu * sp < data.max_length:
        budget = f"data.max_tokens_per_gpu={data.max_tokens_per_gpu}"
        if sp > 1:
            budget += f" x ulysses_sequence_parallel_size={sp}"
        yield (
            f"{budget} cannot hold one sample of data.max_length={data.max_length} tokens; "
            f"raise it to at least {-(-data.max_length // sp)}."
        )


def _home_problems(config: SftConfig) -> Iterator[str]:
    places = {"data.cache_dir": config.data.cache_dir, "trainer.default_local_dir": config.trainer.default_local_dir}
    for key, place in places.items():
        if place.startswith("~"):  # else it has been replaced
            yield f"{key}={shown(place)}: this user has no home directory; set HOME, or {key} to a whole path."


def _data_problems(data: DataConfig) -> Iterator[str]:
    yield from _custom_class_problems(data)
    yield from mixture_problems(data)
    for key, files in (
        ("data.train_files", data.train_files or ()),
        *((f"data.mixture[{index}].path", [source.path]) for index, source in enumerate(data.mixture or ())),
        ("data.val_files", data.val_files or ()),
    ):
        for file in files if data.custom_cls.path is None else ():  # a class may read what we cannot
            if complaint := complaint_about_file(file):
                yield f"{key}={shown(file)} {complaint}"
    for key, rows in (
        ("data.train_max_samples", data.train_max_samples),
        ("data.val_max_samples", data.val_max_samples),
    ):
        if rows == 0:
            yield f"{key}=0 leaves no rows; use -1 for all of them."
    if data.multiturn.enable and data.format not in ("auto", "messages", "sharegpt"):
        yield (
            f"data.format={data.format} reads no list of messages, which data.multiturn.enable=true asks for; "
            "set data.multiturn.enable=false."
        )


def _custom_class_problems(data: DataConfig) -> Iterator[str]:
    path, name = data.custom_cls.path, data.custom_cls.name
    if (path is None) != (name is None):
        yield (
            f"data.custom_cls.path={shown(path)} and data.custom_cls.name={shown(name)} go together; "
            "set both, or leave both at null."
        )
    elif path is not None and not (path.endswith(".py") and Path(path).is_file()):
        yield f"data.custom_cls.path={shown(path)} is no python file{from_here(Path(path))}; give the path of a *.py."


def _complaint_about_run_dir(run_dir: Path) -> str | None:
    try:
        standing = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists() or path.is_symlink())
        if not standing.exists():
            return f"{standing} is a link to {standing.readlink()}, which does not exist."
        if not standing.is_dir():
            return f"{standing} is a file; give a directory."
    except OSError as error:
        return f"{error.filename} cannot be looked into by this user ({error.strerror})."
    return None if os.access(standing, os.W_OK) else f"{standing} cannot be written by this user."


def _trainer_problems(trainer: TrainerConfig) -> Iterator[str]:
    if complaint := _complaint_about_run_dir(Path(trainer.default_local_dir)):
        yield f"trainer.default_local_dir={shown(trainer.default_local_dir)}: {complaint}"
    path = trainer.resume_from_path
    if trainer.resume_mode == "resume_path" and path is None:
        yield (
            "trainer.resume_mode=resume_path needs trainer.resume_from_path=<run>/global_step_N; "
            "or set trainer.resume_mode=auto to take the newest checkpoint."
        )
    elif trainer.resume_mode == "resume_path" and path is not None and not Path(path).is_dir():
        yield f"trainer.resume_from_path={shown(path)} does not exist; give a global_step_N directory."
    elif trainer.resume_mode != "resume_path" and path is not None:
        yield (
            f"trainer.resume_from_path={shown(path)} would be ignored by trainer.resume_mode={trainer.resume_mode}; "
            "set trainer.resume_mode=resume_path, or leave the path out."
        )
    if trainer.resume_mode == "resume_path" and trainer.init_from_checkpoint is not None:
        yield (
            f"trainer.init_from_checkpoint={shown(trainer.init_from_checkpoint)} would be ignored by "
            "trainer.resume_mode=resume_path, which brings its own weights; leave one of them out."
        )
