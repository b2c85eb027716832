"""Open the tokenizer and the datasets of a configuration. Imports little, so that tokenising can start early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft.config import SftConfig
from sft.data.chat.apply import chat_template
from sft.data.chat.framing import adds_bos, beginning_and_end, check_bos_once, check_bos_written, with_bos
from sft.data.chat.templates import NAMES, add_missing_tokens, check_default, find_template, named_templates
from sft.data.chat.tokenizer import rust_tokenizer
from sft.data.chat.variables import remarks
from sft.data.dataset import Dataset, Wanted, open_dataset, tokenise_files
from sft.data.types import Supervision
from sft.errors import InputError
from sft.model.tokenizer import asks_for_bos, load_tokenizer, template_of_processor
from sft.parallel.world import World, log


def open_tokenizer(config: SftConfig, source: Path) -> tuple[Any, str | None, dict[str, int]]:
    """Open the tokenizer: (tokenizer, the template given in place of its own, ids of the special tokens that it needs).

    A tokenizer without a template gets ChatML. One line says what begins and what ends its texts and turns. Raises
    InputError for data.chat_template that is none or leaves out bos, and where LoRA would leave the embeddings of new
    tokens untrained.
    """
    tokenizer, template, added = _open_tokenizer(config, source)
    options = config.data.apply_chat_template_kwargs
    for remark in remarks(tokenizer, options):
        log.warning("%s", remark)
    rust_tokenizer(tokenizer)
    if tokenizer.bos_token and asks_for_bos(source) and not adds_bos(tokenizer):
        log.warning(
            "tokenizer_config.json says add_bos_token: true, and transformers does not follow it here: text rows begin "
            "without %s, as texts do where the model is used. Write it into the rows if they shall begin with it.",
            tokenizer.bos_token,
        )
    check_bos_once(tokenizer, chat_template(tokenizer), options)
    log.info("%s", beginning_and_end(tokenizer, chat_template(tokenizer), options))
    return tokenizer, template, added


def _open_tokenizer(config: SftConfig, source: Path) -> tuple[Any, str | None, dict[str, int]]:
    tokenizer = load_tokenizer(source, trust_remote_code=config.model.trust_remote_code)
    given = config.data.chat_template
    if given is None and tokenizer.chat_template:
        check_default(tokenizer)
        if template := template_of_processor(source):
            log.info("the tokenizer has no chat template: that of the processor is used, and saved with the tokenizer.")
        return tokenizer, template, {}
    if given is None:
        log.info("the tokenizer has no chat template: ChatML is used (data.chat_template=chatml).")
    own, name = named_templates(tokenizer), given or "chatml"
    template = find_template(name, own)
    if name in NAMES:
        template = with_bos(template, tokenizer)
    elif name not in own:
        check_bos_written(tokenizer, template, config.data.apply_chat_template_kwargs)
    tokenizer.chat_template = template
    added = add_missing_tokens(tokenizer, tokenizer.chat_template)
    if added and config.model.lora_rank:
        raise InputError(
            f"data.chat_template={given or 'null (ChatML)'} needs {' and '.join(added)}, which the tokenizer does not "
            f"have, and model.lora_rank={config.model.lora_rank} would leave their embeddings untrained; set "
            "data.chat_template=instruction_response, which needs no new token, or model.lora_rank=0."
        )
    if added:
        told = ", ".join(f"{token} = {token_id}" for token, token_id in added.items())
        log.info("special tokens added to the tokenizer, and saved with the model: %s.", told)
    return tokenizer, tokenizer.chat_template, added


def supervision_of(config: SftConfig) -> Supervision:
    """Return which tokens of a conversation are trained, as configured."""
    return Supervision(config.data.train_on, config.data.thinking_history)


def rows_to_train_on(config: SftConfig) -> Wanted:
    """Return which rows data.train_files or data.mixture asks for."""
    data = config.data
    return Wanted(data.train_files, data.train_max_samples, data.curriculum, config.trainer.seed)


def rows_to_validate_on(config: SftConfig) -> Wanted:
    """Return which rows data.val_files asks for."""
    return Wanted(config.data.val_files, config.data.val_max_samples, seed=config.trainer.seed)


def open_data(
    config: SftConfig, tokenizer: Any, world: World, sample_rows: int | None = None
) -> tuple[Dataset, Dataset | None]:
    """Open the training and the validation samples, tokenised by one process per node, memory-mapped by all.

    sample_rows: as in open_dataset, of each of the two
    """
    train = _open(config, rows_to_train_on(config), tokenizer, world, sample_rows)
    if len(train.mixture.sources) > 1:
        log.info("%s", train.describe_epoch())
    return train, open_val(config, tokenizer, world, sample_rows) if config.data.has_val else None


def tokenise_data(
    config: SftConfig, tokenizer: Any, say: Callable[[str], None], share: tuple[int, int] = (1, 1)
) -> int:
    """Fill the token cache with all that open_data will look for; `say` hears what was tokenised.

    share: as in tokenise_files. Returns how many files of it are in the cache now.
    """
    wanted = [rows_to_train_on(config), *([rows_to_validate_on(config)] if config.data.val_files else [])]
    return sum(tokenise_files(config.data, rows, tokenizer, say, share) for rows in wanted)


def open_val(config: SftConfig, tokenizer: Any, world: World, sample_rows: int | None = None) -> Dataset:
    """Open the validation samples alone: those of data.val_files, or those that data.val_fraction holds out."""
    if config.data.val_files:
        return _open(config, rows_to_validate_on(config), tokenizer, world, sample_rows)
    return _open(config, rows_to_train_on(config), tokenizer, world, sample_rows, is_val=True)


def _open(
    config: SftConfig, wanted: Wanted, tokenizer: Any, world: World, sample_rows: int | None, *, is_val: bool = False
) -> Dataset:
    """Open rows. is_val: those of them that data.val_fraction holds out."""
    max_tokens = config.data.max_tokens_per_gpu
    if max_tokens is not None:
        max_tokens *= config.ulysses_sequence_parallel_size  # each rank of the group holds its part of the row
    return open_dataset(
        config.data,
        wanted,
        max_tokens=max_tokens,
        packed=config.use_remove_padding,
        tokenizer=tokenizer,
        build_here=world.local_rank == 0,
        say=log.info,
        sample_rows=sample_rows,
        is_val=is_val,
    )
