"""Read the questions, ask the model, and write the answers."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from sft.config.secrets import presentable
from sft.config.visible import visible, visible_line
from sft.data.chat.variables import unread, variables
from sft.data.rows.files import read_rows
from sft.errors import InputError
from sft.files import complaint_about_output, explaining_disk, replace_file
from sft.generate.answer import VisibleStreamer, chat_prompt, open_model
from sft.model.answer import Sampling, answer

Messages = list[dict[str, Any]]


def ask(options: Namespace) -> None:
    """Answer what the command's options ask. Raises InputError."""
    rows = list(read_questions(options.prompts, options.system)) if options.prompts else []
    if options.out and (complaint := complaint_about_output(options.out)):
        raise InputError(f"--out {options.out} {complaint}; name another file.")
    model, tokenizer = open_model(options.model, trust_remote_code=options.trust_remote_code)
    if model.generation_config is not None and model.generation_config.eos_token_id is None:
        told = f"warning: {options.model} names no stop token: every answer runs to its full length"
        print(presentable(told), file=sys.stderr)
    for remark in unread(options.chat_template_kwargs, variables(tokenizer), "--chat-template-kwargs"):
        print(presentable(f"warning: {remark}"), file=sys.stderr)
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p)
    torch.manual_seed(options.seed)

    def ids_of(messages: Messages) -> list[int]:
        if options.raw:
            return tokenizer(messages[-1]["content"])["input_ids"]
        return chat_prompt(tokenizer, messages, **options.chat_template_kwargs)

    if options.prompts:
        console = Console(stderr=True)
        answers = answer(
            model,
            tokenizer,
            [ids_of(messages) for messages in rows],
            sampling,
            batch_size=options.batch_size,
            progress=lambda starts, total: track(starts, "generating", total=total, console=console),
        )
        write_answers(options.out, rows, answers)
        return
    prompt = options.prompt
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None:
        if not prompt.strip():
            raise InputError("the prompt is empty; give --prompt TEXT, --prompts FILE, or text on stdin.")
        said = answer(model, tokenizer, [ids_of(with_system(prompt, options.system))], sampling)[0]
        print(visible(said) if sys.stdout.isatty() else said)
        return
    streamer = VisibleStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    talk(options.system, lambda messages: answer(model, tokenizer, [ids_of(messages)], sampling, streamer=streamer)[0])


def read_questions(file: Path, system: str | None) -> Iterator[Messages]:
    """Read the conversations of a file. Raises InputError naming file:line."""
    if file.suffix == ".txt":
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--prompts {file} cannot be read ({error}).") from error
        asked = [with_system(line, system) for line in lines if line.strip()]
    else:
        asked = [_of_row(where, cells, system) for where, cells in read_rows(file)]
    if not asked:
        raise InputError(f"--prompts {file} holds no prompt; expected one per line.")
    if answered := sum(turns[-1]["role"] == "assistant" for turns in asked):
        print(
            f"{visible_line(str(file))}: {answered:,} conversations end with an answer, which is left out",
            file=sys.stderr,
        )
    yield from map(_up_to_the_answer, asked)


def _up_to_the_answer(turns: Messages) -> Messages:
    asking = [n for n, turn in enumerate(turns) if turn["role"] != "assistant"]
    return turns[: asking[-1] + 1]


def _of_row(where: str, cells: dict[str, Any], system: str | None) -> Messages:
    prompt, messages = cells.get("prompt"), cells.get("messages")
    if isinstance(prompt, str) and prompt.strip():
        return with_system(prompt, system)
    messages = messages if isinstance(messages, list) else prompt  # RL data keeps the messages in `prompt`
    turns = messages if isinstance(messages, list) else []
    is_chat = all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns)
    if not is_chat or all(turn["role"] == "assistant" for turn in turns):
        raise InputError(
            f'{where}: expected "prompt" with text, or "messages" with a list of role and content; '
            f"found {', '.join(cells) or 'nothing'}."
        )
    return [{"role": "system", "content": system}, *turns] if system else turns


def with_system(prompt: str, system: str | None) -> Messages:
    """Return a conversation of one question, after the system message if there is one."""
    question = {"role": "user", "content": prompt}
    return [{"role": "system", "content": system}, question] if system else [question]


def write_answers(out: Path | None, rows: list[Messages], answers: list[str]) -> None:
    """Write an object per line: prompt (the last message) and answer."""
    lines = [
        json.dumps({"prompt": messages[-1]["content"], "answer": text}, ensure_ascii=False)
        for messages, text in zip(rows, answers, strict=True)
    ]
    if out is None:
        text = "\n".join(lines)
        print(visible(text) if sys.stdout.isatty() else text)  # programs get what was said
        return
    with explaining_disk(f"--out={out}", "Make room there, or name another file."):
        replace_file(out, ("\n".join(lines) + "\n").encode())
    print(presentable(f"{out}: {len(lines):,} answers"), file=sys.stderr)


def talk(system: str | None, reply: Any) -> None:
    """Hold a conversation: a line of the user's, an answer, until Ctrl-D. /new forgets what was said."""
    beginning = [{"role": "system", "content": system}] if system else []
    messages = list(beginning)
    print("Ask something. /new begins again, Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line == "/new":
            messages = list(beginning)
        elif line:
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": reply(messages)})
