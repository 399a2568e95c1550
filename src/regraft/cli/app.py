"""The command line: all verbs, and how it ends."""

from __future__ import annotations

import errno
import signal
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from regraft.cli import fitting, judging, listing, recipes, using
from regraft.cli.flags import Group
from regraft.errors import UserError, escape_control

_UNUSABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
)  # of paths: the user's mistake, and not our bug
_INTERRUPTED = 130  # how Typer reports Ctrl-C
_MISTAKE = 2

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Which way should a pretrained network be carried over to my images, and was it worth it?",
    epilog="Start with:  regraft compare digits   or   "
    "regraft compare path/to/folder-of-class-folders",
)
app.add_typer(fitting.app)
app.add_typer(judging.app)
app.add_typer(using.app)
app.add_typer(listing.app)
app.add_typer(listing.backbones_app, name="backbones")
app.add_typer(listing.cache_app, name="cache")
app.add_typer(recipes.app, name="recipes")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"regraft {version('regraft')}")
        raise typer.Exit


@app.callback()
def regraft(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Only the version is asked for without a verb."""


def main() -> None:
    """Run the command line: 0 done, 2 the user's mistake or stopped, anything else our bug."""
    before = signal.signal(signal.SIGTERM, _interrupt)  # `serve` puts its own in its place
    try:
        code = _run()
    finally:
        signal.signal(signal.SIGTERM, before)
    if code == _INTERRUPTED:
        sys.stderr.write(
            "\nregraft: Stopped. Finished work is kept: repeat the command with --resume to "
            "continue fit, compare or predict --out.\n"
        )
        code = _MISTAKE
    sys.exit(code)


def _run() -> int:
    """Return the exit status of the verb that was asked for; raises our bugs."""
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        return 0
    except SystemExit as stopped:
        # click's answer to a reader that has gone, such as `| head`
        code = 0 if isinstance(stopped.__context__, BrokenPipeError) else stopped.code
    except Exception as error:
        if not _explain(error):
            raise
        return _MISTAKE
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> bool:
    """Print what the user did wrong in a sentence; returns False where it is our bug."""
    if isinstance(error, UserError):
        sentence = str(error)
    elif isinstance(error, OSError):
        if error.errno not in _UNUSABLE or error.filename is None:
            return False
        sentence = (
            f"{error.filename} cannot be used ({error.strerror}). Expected a path that can be. "
            "Check its name and permissions."
        )
    elif callable(getattr(error, "show", None)):  # click's error for a wrong flag
        error.show()  # type: ignore[attr-defined]  # Typer brings a click of its own
        return True
    else:
        return False
    sys.stderr.write(f"regraft: {escape_control(sentence)}\n")
    return True


def _interrupt(*_: object) -> NoReturn:
    """End as Ctrl-C does: finished work is kept, and how to resume is said."""
    raise KeyboardInterrupt
