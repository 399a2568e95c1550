"""Progress on stderr, while a verb is at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from regraft.cli.console import err
from regraft.commands.options import PredictOptions
from regraft.options import Options
from regraft.system.progress import ProgressReporter

AnyOptions = TypeVar("AnyOptions", Options, PredictOptions)


class ProgressBars(ProgressReporter):
    """Shows messages and how far the work is."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def log(self, text: str) -> None:
        """Print a message above the bars."""
        self.bars.console.print(text, markup=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show a bar for one piece of work until it is done."""
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total or None)
        self.bars.update(self.tasks[what], completed=done, total=total or None)
        if total and done >= total:
            self.bars.remove_task(self.tasks.pop(what))


class Messages(ProgressReporter):
    """Prints messages on stderr."""

    def log(self, text: str) -> None:
        """Print a message."""
        typer.echo(text, err=True)


@contextmanager
def progress(quiet: bool) -> Iterator[ProgressReporter]:
    """Give a reporter that shows bars, or one that shows nothing."""
    if quiet:
        yield ProgressReporter()
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        yield ProgressBars(bars)


@contextmanager
def reporting(options: AnyOptions, quiet: bool) -> Iterator[AnyOptions]:
    """Give the options with a reporter that shows progress, unless it is to be quiet."""
    with progress(quiet) as reporter:
        yield with_reporter(options, reporter)


def with_reporter(options: AnyOptions, reporter: ProgressReporter) -> AnyOptions:
    """Return options whose reporter hears of the progress."""
    runtime = replace(options.runtime, reporter=reporter)
    return replace(options, runtime=runtime)
