"""Tools and calls of them, made fit for a chat template: schemas and arguments become objects where they are text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft.data.chat.meaning import dangers
from sft.data.chat.values import is_empty, path_of_non_json, plain
from sft.data.types import ConfigMistake
from sft.errors import InputError

ARGUMENTS = ("arguments", "parameters", "args", "input", "kwargs", "params")
CALL_KEYS = frozenset({"id", "type", "index", "function", "name", *ARGUMENTS})
RESULTS = ("result", "results", "output", "outputs", "response", "returns", "observation")
"""The keys of a tool call: where its arguments stand, all that are read, and where its result would stand."""


def clean_tools(tools: Any, where: str) -> list[dict[str, Any]] | None:
    """Return the tools' schemas from a list, one schema, or JSON text of either; None if there are none."""
    schemas = opened(plain(tools), f"{where}: tools") if isinstance(tools, str) else plain(tools)
    if is_empty(schemas):
        return None
    schemas = [schemas] if isinstance(schemas, dict) else schemas
    if isinstance(schemas, list):
        schemas = [opened(schema, f"{where}: tools[{n}]") for n, schema in enumerate(schemas)]
    if not isinstance(schemas, list) or not all(isinstance(schema, dict) for schema in schemas):
        raise InputError(f"{where}: tools must be a list of JSON schemas, or that list as JSON text; found {tools!r}.")
    schemas = [_with_parameters(schema, f"{where}: tools[{n}]") for n, schema in enumerate(schemas)]
    for n, schema in enumerate(schemas):
        _check_name(schema, f"{where}: tools[{n}]")
    refuse_non_json(schemas, f"{where}: tools")
    return schemas


def refuse_tools_twice(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None, where: str) -> None:
    """Raise ConfigMistake where a system message lists the tools already that the template will list (Hermes)."""
    if not tools or not messages or messages[0].get("role") != "system":
        return
    said = messages[0]["content"]
    functions = [tool["function"] if isinstance(tool.get("function"), Mapping) else tool for tool in tools]
    if "<tools>" in said or (
        '"parameters"' in said and all(f'"{function.get("name")}"' in said for function in functions)
    ):
        raise ConfigMistake(
            f"{where}: the system message lists the tools, and the chat template would list them once more, from the "
            "column of tools. data.ignore_columns=[tools] leaves the column out (its name, if it has another one)."
        )


def clean_tool_call(call: Any, where: str) -> dict[str, Any]:
    """Return one tool call, its arguments an object. Raises InputError for what is no call, or says more than one."""
    call = _present(opened(call, where))
    function = _present(opened(call.get("function", call), where)) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name.strip():
        raise InputError(f"{where} must name a function, found {call!r}.")
    for struct in (call, function):
        others = {key: value for key, value in struct.items() if key not in CALL_KEYS and not is_empty(value)}
        lacks_arguments = struct is function and not any(key in struct for key in ARGUMENTS)
        unread = [key for key, said in others.items() if key in RESULTS or (lacks_arguments and _is_struct(said))]
        unread = list(dict.fromkeys([*dangers(others, ()), *unread]))
        if unread:
            raise InputError(
                f"{where} has {', '.join(map(repr, unread))}, which no chat template reads; expected a name and its "
                "arguments. Write a result as a message of the role tool."
            )
    stated = {key: function[key] for key in ARGUMENTS if key in function}
    if len(stated) > 1:
        raise InputError(f"{where} states its arguments by {' and '.join(stated)}; keep one.")
    arguments = next(iter(stated.values()), {})
    if isinstance(arguments, str):
        # As text, some templates print them as they are and others encode them once more, as a JSON string.
        arguments = _from_json(arguments, f"{where}: arguments") if arguments.strip() not in ("", "null") else {}
    if not isinstance(arguments, dict):
        raise InputError(f"{where}: arguments must be an object, found {arguments!r}.")
    others = {key: value for key, value in function.items() if key not in stated}
    function = {**others, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def _is_struct(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def _with_parameters(schema: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the schema with its parameters as an object, where they are JSON text."""
    if isinstance(schema.get("function"), str | dict):
        function = opened(schema["function"], where)
        return {**schema, "function": _with_parameters(function, where)} if isinstance(function, dict) else schema
    if isinstance(schema.get("parameters"), str):
        return {**schema, "parameters": opened(schema["parameters"], f"{where}.parameters")}
    return schema


def _check_name(schema: Mapping[str, Any], where: str) -> None:
    """Raise InputError for a schema by which nothing can be called. What a vendor brings along is known by its type."""
    function = schema["function"] if isinstance(schema.get("function"), Mapping) else schema
    is_built_in = schema.get("type") not in (None, "", "function", "object") and "function" not in schema
    if not is_built_in and not (isinstance(name := function.get("name"), str) and name.strip()):
        raise InputError(
            f"{where} has no name; found {sorted(map(str, function))[:12]}, expected "
            '{"name": ..., "description": ..., "parameters": {...}}, or that under "function"; a list of them.'
        )


def opened(value: Any, where: str) -> Any:
    """Return the object or list that JSON text holds; other values as they are."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        return _from_json(value, where)
    return value


def _present(value: Any) -> Any:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value


def refuse_non_json(value: Any, where: str) -> None:
    """Raise InputError with the path of a value inside that JSON cannot say."""
    found = path_of_non_json(value, where)
    if found is not None:
        path, thing = found
        raise InputError(
            f"{path} is {shown(thing)}, which JSON cannot say, so no chat template can show it; expected text, "
            "numbers, true, false, null, lists and objects."
        )


def shown(value: Any) -> str:
    """Return the type of a found value and its first 80 characters, as a message shows it."""
    text = repr(value)
    return f"{type(value).__name__} {text[:80]}{'…' if len(text) > 80 else ''}"


def _from_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error}): {text[:80]!r}.") from error
