"""Where everything is printed: stdout for results, stderr for progress, both safe for terminals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table

from regraft.errors import escape_control
from regraft.options import option

Values = dict[str, Any]
_FILE_WIDTH = 120  # where stdout is no terminal


@dataclass(frozen=True)
class Output:
    """How a verb answers."""

    json: bool = option(False, "Print one JSON object on stdout and nothing else there.")
    quiet: bool = option(False, "No progress on stderr.", "--quiet", "-q")


class Result(Protocol):
    """What a verb comes to, as plain data."""

    def to_json(self) -> Values:
        """Return what `--json` prints."""
        ...


class _EscapeControl(RenderHook):
    """Spells out control characters in names, which would do something to a terminal."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(renderable) for renderable in renderables]


class _Escaped:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.inner, options):
            if segment.control:
                yield segment
            else:
                yield Segment(escape_control(segment.text), segment.style)


def _make_console(stderr: bool, width: int | None = None) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=True, width=width)
    console.push_render_hook(_EscapeControl())
    return console


out = _make_console(stderr=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
err = _make_console(stderr=True)


def say(text: str = "", style: str = "") -> None:
    """Print a sentence; names in it are no markup."""
    out.print(text, style=style or None, markup=False)


def remark(text: str) -> None:
    """Print what explains a table, less bright."""
    say(text, "dim")


def warn(warnings: Sequence[str]) -> None:
    """Print what must be read before any number."""
    for warning in warnings:
        say(warning, "bold red")


def print_json(values: Any) -> None:
    """Print one object as JSON."""
    sys.stdout.write(json.dumps(values, indent=2) + "\n")


def print_result(result: Result, output: Output, render: Callable[[Values], None]) -> None:
    """Print a result: as JSON, or as people read it."""
    values = result.to_json()
    if output.json:
        print_json(values)
    else:
        render(values)


def make_table(*heads: str, right_from: int | None = None) -> Table:
    """Return an empty table.

    Args:
        *heads: Heads of the columns.
        right_from: The first column whose numbers are aligned on the right; none when None.
    """
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        is_right = right_from is not None and number >= right_from
        table.add_column(head, justify="right" if is_right else "left", no_wrap=is_right)
    return table


def print_pairs(rows: dict[str, str], head: str = "") -> None:
    """Print names with what they mean."""
    table = Table(box=None, pad_edge=False, show_header=False)
    if head:
        out.print(head, style="bold")
    for name, meaning in rows.items():
        table.add_row(name, meaning)
    out.print(table)


def print_lines(lines: Iterable[str]) -> None:
    """Print sentences, one a line."""
    for line in lines:
        say(line)
