"""What the site takes from the code and from the rest of the repository: the tables of plan and command line, the Python names, pages outside of `docs/`.

Refuses to say anything twice: descriptions are those of the fields, the flags and the docstrings.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "architecture.md": "ARCHITECTURE.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "results.md": "benchmarks/RESULTS.md",
}
_ASKED = re.compile(r"^<!-- made: ([\w ]+) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the pages with those from outside of `docs/`."""
    for name, place in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page with what is made in its place, and links that hold on the site as they do in the repository."""
    there = OUTSIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    pages = {place: name for name, place in OUTSIDE.items()}

    def led(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(there), link[1]))
        on_site = pages.get(target) or (
            target.removeprefix("docs/") if target.startswith("docs/") else None
        )
        return on_site or link[1]  # all pages lie side by side

    return _ASKED.sub(lambda asked: MADE[asked[1]](), _LINK.sub(led, markdown))


def plan_fields() -> str:
    """Return the table of a plan's fields."""
    from regraft.plans.schema import Plan

    return _fields(Plan)


def phase_fields() -> str:
    """Return the table of a phase's fields."""
    from regraft.plans.schema import Phase

    return _fields(Phase)


def _fields(model: Any) -> str:
    schema = model.model_json_schema()
    rows = [
        f"| `{name}` | {_kind(field)} | {_default(model, name)} | {_cell(field['description'])} |"
        for name, field in schema["properties"].items()
    ]
    return "\n".join(["| field | what it takes | default | meaning |", "|---|---|---|---|", *rows])


def _kind(field: dict[str, Any]) -> str:
    """Return in words what a field takes, from its JSON schema."""
    if "anyOf" in field:
        return ", or ".join(_kind(one) for one in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{json.dumps(word)}`" for word in field["enum"])
    if "$ref" in field:
        return "a phase"
    if field["type"] == "array":
        return f"list of: {_kind(field['items'])}"
    if field["type"] == "object":
        return f"table of: {_kind(field['additionalProperties'])}"
    if field["type"] == "string":
        return "text"
    low = (
        f"{field['minimum']:,}"
        if "minimum" in field
        else f"above {field['exclusiveMinimum']:,}"
        if "exclusiveMinimum" in field
        else ""
    )
    high = (
        f"{field['maximum']:,}"
        if "maximum" in field
        else f"below {field['exclusiveMaximum']:,}"
        if "exclusiveMaximum" in field
        else ""
    )
    words = {"integer": "whole number", "number": "number"}[field["type"]]
    return (
        f"{words}, {low} to {high}"
        if low and high
        else f"{words}, {low}{' or more' if 'minimum' in field else ''}"
        if low
        else words
    )


def _default(model: Any, name: str) -> str:
    field = model.model_fields[name]
    return "must be given" if field.is_required() else f"`{_toml(field.default)}`"


def _toml(value: Any) -> str:
    """Return a value as TOML writes it."""
    import tomli_w

    return (
        tomli_w.dumps({"x": value}, multiline_strings=False)
        .removeprefix("x = ")
        .strip()
        .replace("\n    ", " ")
        .replace(",\n]", " ]")
    )


def example() -> str:
    """Return a whole plan as TOML, every field with its description behind it."""
    from regraft.data.dataset import DatasetInfo
    from regraft.plans.schema import ModelInfo, Phase, Plan
    from regraft.plans.techniques import make_technique_plan

    stages = ("conv1", "layer1", "layer2", "layer3", "layer4")
    model = ModelInfo("resnet50", stages, stages, frozenset(stages), 224, False)
    plan = make_technique_plan(
        "probe-then-fine-tune", model, DatasetInfo("photos", 3000, ("cat", "dog"), (480, 640))
    )
    blocks = [list(_commented(Plan, plan, {"phases"}))]
    for number, phase in enumerate(plan.phases):
        said = (
            set()
            if number == 0
            else {
                name
                for name in Phase.model_fields
                if getattr(phase, name) == Phase.model_fields[name].default
            }
        )
        blocks.append(["[[phases]]", *_commented(Phase, phase, said)])
    return "\n\n".join("\n".join(block) for block in blocks)


def _commented(model: Any, values: Any, left_out: set[str]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name not in left_out:
            yield f"{f'{name} = {_toml(getattr(values, name))}':<42} # {field.description}"


def verbs() -> str:
    """Return every verb with its arguments and flags."""
    import typer

    from regraft.cli.main import app

    return "\n\n".join(_verb(typer.main.get_command(app), "regraft", None))


def _verb(command: Any, name: str, parent: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=name.rpartition(" ")[2], parent=parent)
    if parent is not None:
        yield f"{'##' if parent.parent is None else '###'} {name}"
    yield _cell(command.help)
    yield f"```text\n{name} {' '.join(command.collect_usage_pieces(context))}\n```"
    records = [
        found
        for one in command.get_params(context)
        if (found := one.get_help_record(context)) and one.name != "help"
    ]
    if records:
        yield "\n".join(
            [
                "| word or flag | meaning |",
                "|---|---|",
                *(f"| {_flag(flag)} | {_cell(about)} |" for flag, about in records),
            ]
        )
    if command.epilog:
        about, _, words = command.epilog.partition(":  ")
        yield (
            f"{about}:\n\n```sh\n{words}\n```"
            if about == "Example" and "   or   " not in words
            else _cell(command.epilog)
        )
    for inner in sorted(getattr(command, "commands", {})):
        yield from _verb(command.commands[inner], f"{name} {inner}", context)


def _flag(text: str) -> str:
    return f"`{text.strip()}`"


def _cell(text: str) -> str:
    """Return text that a cell of a table can hold: no bar ends it, no angle bracket or asterisk is markup outside of backticks."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", "\\|"))
    return "".join(
        part if part.startswith("`") else re.sub(r"([<*_])", r"\\\1", part) for part in parts
    )


def public_names() -> str:
    """Return what documents every public name of the package itself."""
    import regraft

    return "\n\n".join(f"::: regraft.{name}" for name in sorted(regraft.__all__, key=str.lower))


MADE: dict[str, Callable[[], str]] = {
    "fields of a plan": plan_fields,
    "fields of a phase": phase_fields,
    "plan": lambda: f"```toml\n{example()}\n```",
    "verbs": verbs,
    "public names": public_names,
}
