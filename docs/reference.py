"""Markdown made from the code: tables of plan fields, the command line, the public Python names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from json_reference import get_json_keys

JsonSchema = dict[str, Any]


def get_plan_fields() -> str:
    """Return the table of a plan's fields."""
    from regraft.plans.schema import Plan

    return format_fields(Plan.model_json_schema())


def get_phase_fields() -> str:
    """Return the table of a phase's fields."""
    from regraft.plans.schema import Phase

    return format_fields(Phase.model_json_schema())


def format_fields(schema: JsonSchema) -> str:
    """Return a table with one row a field.

    Args:
        schema: of one object, as pydantic writes it: `Model.model_json_schema()`, or
            `TypeAdapter(Dataclass).json_schema()`. Every field has a description.
    """
    required = schema.get("required", [])
    rows = ["| field | what it takes | default | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        default = "must be given" if name in required else f"`{to_toml(field['default'])}`"
        meaning = escape_cell(field["description"])
        rows.append(f"| `{name}` | {describe_type(field)} | {default} | {meaning} |")
    return "\n".join(rows)


def describe_type(field: JsonSchema) -> str:
    """Return in words what a field takes, from its JSON schema."""
    if "anyOf" in field:
        return ", or ".join(describe_type(choice) for choice in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{json.dumps(word)}`" for word in field["enum"])
    if "$ref" in field:
        return "a phase"
    if field["type"] == "array":
        return f"list of: {describe_type(field['items'])}"
    if field["type"] == "object":
        return f"table of: {describe_type(field['additionalProperties'])}"
    words = {"string": "text", "integer": "whole number", "number": "number"}
    return words[field["type"]] + describe_range(field)


def describe_range(field: JsonSchema) -> str:
    """Return the allowed range of a number: `, 1 to 100`, `, 0 or more`, or nothing."""
    low = high = ""
    if "minimum" in field:
        low = f"{field['minimum']:,}"
    elif "exclusiveMinimum" in field:
        low = f"above {field['exclusiveMinimum']:,}"
    if "maximum" in field:
        high = f"{field['maximum']:,}"
    elif "exclusiveMaximum" in field:
        high = f"below {field['exclusiveMaximum']:,}"
    if low and high:
        return f", {low} to {high}"
    if low:
        return f", {low} or more" if "minimum" in field else f", {low}"
    return ""


def to_toml(value: Any) -> str:
    """Return a value on one line, as TOML writes it."""
    import tomli_w

    document = tomli_w.dumps({"x": value}, multiline_strings=False)
    text = document.removeprefix("x = ").strip()
    return text.replace("\n    ", " ").replace(",\n]", " ]")


def get_example_plan() -> str:
    """Return a whole plan as TOML, each field with its description as a comment.

    In phases after the first, fields at their defaults are left out.
    """
    from regraft.data.dataset import DatasetInfo
    from regraft.plans.schema import ModelInfo, Phase, Plan
    from regraft.plans.techniques import make_technique_plan

    stages = ("conv1", "layer1", "layer2", "layer3", "layer4")
    model = ModelInfo("resnet50", stages, stages, frozenset(stages), 224, False)
    images = DatasetInfo("photos", 3000, ("cat", "dog"), (480, 640))
    plan = make_technique_plan("probe-then-fine-tune", model, images)
    blocks = [list(comment_fields(plan, set(Plan.model_fields) - {"phases"}))]
    for number, phase in enumerate(plan.phases):
        shown = set(Phase.model_fields)
        if number > 0:
            shown -= get_defaults(phase)
        blocks.append(["[[phases]]", *comment_fields(phase, shown)])
    return "\n\n".join("\n".join(lines) for lines in blocks)


def get_defaults(values: Any) -> set[str]:
    """Return the names of the fields that have their default value."""
    fields = type(values).model_fields
    return {name for name, field in fields.items() if getattr(values, name) == field.default}


def comment_fields(values: Any, shown: set[str]) -> Iterator[str]:
    """Yield `name = value  # description` for each shown field of a pydantic model."""
    for name, field in type(values).model_fields.items():
        if name in shown:
            assignment = f"{name} = {to_toml(getattr(values, name))}"
            yield f"{assignment:<42} # {field.description}"


def get_verbs() -> str:
    """Return every verb of the command line with its arguments and flags."""
    import typer

    from regraft.cli.app import app

    return "\n\n".join(document_verb(typer.main.get_command(app), "regraft", None))


def document_verb(command: Any, name: str, parent: Any) -> Iterator[str]:
    """Yield the paragraphs on a click command, then those on its subcommands.

    Args:
        name: the words that call it, for example `regraft backbones show`.
        parent: the click context of the command that it belongs to; None for `regraft` itself.
    """
    context = command.context_class(command, info_name=name.rpartition(" ")[2], parent=parent)
    if parent is not None:
        heading = "##" if parent.parent is None else "###"
        yield f"{heading} {name}"
    yield escape_cell(command.help)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{name} {usage}\n```"
    flags = list(document_flags(command, context))
    if flags:
        yield "\n".join(["| word or flag | meaning |", "|---|---|", *flags])
    if command.epilog:
        yield document_epilog(command.epilog)
    subcommands = getattr(command, "commands", {})
    for word in sorted(subcommands):
        yield from document_verb(subcommands[word], f"{name} {word}", context)


def document_flags(command: Any, context: Any) -> Iterator[str]:
    """Yield a row of a table for each argument and flag of a command, without `--help`."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and parameter.name != "help":
            yield f"| `{record[0].strip()}` | {escape_cell(record[1])} |"


def document_epilog(epilog: str) -> str:
    """Return the last line of a verb's help; a single example becomes a block of shell."""
    heading, _, example = epilog.partition(":  ")
    if heading == "Example" and "   or   " not in example:
        return f"{heading}:\n\n```sh\n{example}\n```"
    return escape_cell(epilog)


def escape_cell(text: str) -> str:
    """Return text for a cell of a table: bars escaped, and markup outside of backticks."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", "\\|"))
    for number, part in enumerate(parts):
        if not part.startswith("`"):
            parts[number] = re.sub(r"([<*_])", r"\\\1", part)
    return "".join(parts)


def get_public_names() -> str:
    """Return what makes mkdocstrings document every public name of the package itself."""
    import regraft

    return "\n\n".join(f"::: regraft.{name}" for name in sorted(regraft.__all__, key=str.lower))


# By the name in `<!-- made: NAME -->`.
MAKERS: dict[str, Callable[[], str]] = {
    "fields of a plan": get_plan_fields,
    "fields of a phase": get_phase_fields,
    "plan": lambda: f"```toml\n{get_example_plan()}\n```",
    "verbs": get_verbs,
    "json": get_json_keys,
    "public names": get_public_names,
}
