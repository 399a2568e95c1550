"""Markdown made from the code: every key that `--json` prints, with its type and its meaning."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from json_objects import TABLES, VERBS, Table


class Row(NamedTuple):
    """A row of a table: a key, what it holds, and what it means."""

    key: str
    type: str
    meaning: str


_LINKED = {table.path: name for name, table in reversed(TABLES.items())}
_WORDS = {
    str: "text",
    Path: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    object: "any value",
    Any: "any value",
    type(None): "null",
}


def get_json_keys() -> str:
    """Return a section for every verb, and one for every object inside of what they print."""
    blocks = []
    verbs = {name: verb for verb, name in VERBS.items()}
    for name, table in TABLES.items():
        if name in verbs:
            blocks.append(f"## {verbs[name]}")
        else:
            blocks.append(f"### {name}")
        blocks.append(format_table(get_rows(table)))
    return "\n\n".join(blocks)


def format_table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    from reference import escape_cell

    lines = ["| key | type | meaning |", "|---|---|---|"]
    for row in rows:
        key = row.key if " " in row.key else f"`{row.key}`"
        meaning = re.sub(r"\bNone\b", "null", row.meaning)
        lines.append(f"| {key} | {row.type} | {escape_cell(meaning)} |")
    return "\n".join(lines)


def get_rows(table: Table) -> list[Row]:
    """Return the keys of an object, those of its attributes first.

    Raises:
        KeyError: When the class does not say what an attribute means.
    """
    kind = table.kind
    meanings = read_meanings(kind)
    hints = get_type_hints(kind)
    key_of = {attribute: key for key, attribute in table.renamed.items()}
    rows = []
    for field in fields(kind):  # type: ignore[arg-type]
        key = key_of.get(field.name, field.name)
        if field.name not in table.without and key not in table.written:
            rows.append(Row(key, describe_type(hints[field.name]), meanings[field.name]))
    for key, written in table.written.items():
        rows.append(Row(key, written.type, written.meaning or meanings[written.attribute]))
    for name in table.more:
        rows.append(Row(name, describe_property(kind, name), meanings[name]))
    return rows


def read_meanings(kind: type) -> dict[str, str]:
    """Return what the docstring of a class says of its attributes, and of its properties."""
    meanings = dict(read_arguments(kind.__doc__ or ""))
    for name, value in vars(kind).items():
        if isinstance(value, property):
            first, _, _ = (value.__doc__ or "").partition("\n")
            meanings[name] = first
    return meanings


def read_arguments(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield names and meanings in the section `Args:` of a docstring; wrapped lines are joined."""
    _, _, section = docstring.partition("Args:\n")
    name = ""
    lines: list[str] = []
    for line in [*section.splitlines(), "        end: "]:
        start = re.match(r" {8}(\w+): (.*)", line)
        if start:
            if name:
                yield name, " ".join(lines)
            name = start[1]
            lines = [start[2].strip()]
        elif line.startswith(" " * 12):
            lines.append(line.strip())


def describe_property(kind: type, name: str) -> str:
    """Return in words what a property holds."""
    return describe_type(get_type_hints(getattr(kind, name).fget)["return"])


def describe_type(hint: Any) -> str:
    """Return in words what an annotation becomes in JSON."""
    if hint in _WORDS:
        return _WORDS[hint]
    origin = get_origin(hint)
    arguments = [argument for argument in get_args(hint) if argument is not ...]
    if origin in (Union, types.UnionType):
        words = [describe_type(argument) for argument in arguments]
        return " or ".join(dict.fromkeys(words))
    if is_dataclass(origin or hint):
        return _describe_class(origin or hint)
    if origin is None:
        return "object, see [the plan](plan.md)"
    if issubclass(origin, Mapping):
        return f"object of {describe_type(arguments[1])}"
    return f"list of {describe_type(arguments[0])}"


def _describe_class(kind: Any) -> str:
    name = _LINKED[f"{kind.__module__}:{kind.__qualname__}"]
    if name in VERBS.values():
        verb = next(verb for verb, table in VERBS.items() if table == name)
        return f"[as in {verb}](#{verb})"
    return f"[{name}](#{name.lower()})"
