"""What the tests of the documentation share: its pages, their blocks of code, the built site."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import typer
from click import Command

from regraft.cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PROSE = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md"]
# Pages in which a figure stands where it was measured.
LEDGERS = [
    ROOT / "README.md",
    DOCS / "measured.md",
    DOCS / "experiments.md",
    ROOT / "benchmarks" / "RESULTS.md",
]
_BLOCK = re.compile(
    r'^(<!-- run -->\n)?```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE
)
_LOADING_LINKS = {"stylesheet", "preload", "preconnect", "icon", "shortcut icon"}


def get_missing(*modules: str) -> str:
    """Return why a test is skipped, or "" where all these modules can be imported."""
    missing = [name for name in modules if find_spec(name) is None]
    if not missing:
        return ""
    return f"{', '.join(missing)} cannot be imported; pip install 'regraft[docs]' brings them"


NO_SITE = get_missing("zensical", "mkdocstrings_handlers", "yaml")
NO_NOTEBOOK = get_missing("nbclient", "nbformat", "ipykernel")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str  # the file that it is, or ""
    body: str
    run: bool  # whether `<!-- run -->` stands above it


def get_blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    matches = _BLOCK.findall(path.read_text(encoding="utf-8"))
    return [Block(language, title, body, bool(mark)) for mark, language, title, body in matches]


def get_prose(path: Path) -> str:
    """Return a page without its fenced blocks."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def get_commands(text: str) -> list[list[str]]:
    """Return the words after `regraft` of each such command in some lines of shell."""
    commands = []
    for line in text.splitlines():
        for part in re.split(r"&&|\|(?!\w)|;|   or   ", line):
            words = shlex.split(part, comments=True)
            while words and "=" in words[0] and words[0].isupper():  # NAME=value before it
                words.pop(0)
            if words[:1] == ["regraft"]:
                commands.append(words[1:])
    return commands


def parse_command(words: list[str]) -> str:
    """Return the verb that these words call.

    Raises:
        click.ClickException: a verb, a flag or an argument is wrong.
    """
    command = typer.main.get_command(app)
    context = command.make_context("regraft", list(words))
    verb = ""
    rest = list(words)
    while hasattr(command, "commands") and rest:
        word, command, rest = command.resolve_command(context, rest)
        context = command.make_context(word, list(rest), parent=context)
        verb = f"{verb} {word}".strip()
    return verb


def get_verbs() -> dict[str, Command]:
    """Return every verb with its command; `backbones show` is one, too."""
    return dict(_walk_verbs(typer.main.get_command(app), ""))


def _walk_verbs(command: Command, name: str) -> Iterator[tuple[str, Command]]:
    if name:
        yield name, command
    for word, subcommand in getattr(command, "commands", {}).items():
        yield from _walk_verbs(subcommand, f"{name} {word}".strip())


def get_flags(*commands: Command) -> set[str]:
    """Return all flags of these commands, `--no-` forms too."""
    flags: set[str] = set()
    for command in commands:
        for parameter in command.params:
            names = [*parameter.opts, *parameter.secondary_opts]
            flags |= {name for name in names if name.startswith("-")}
    return flags


class SitePage(HTMLParser):
    """What a page of the built site holds.

    Attributes:
        links: where it points to.
        loaded: scripts, pictures and styles that a browser fetches to show it.
        anchors: the ids in it.
        headings, codes: the text of each.
        text: all of it, with single blanks.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.headings: list[str] = []
        self.codes: list[str] = []
        self._words: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", "".join(self._words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if values.get("id"):
            self.anchors.add(values["id"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in ("script", "img", "iframe", "source") and values.get("src"):
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in _LOADING_LINKS:
            self.loaded.append(values["href"])
        if tag in ("h1", "h2", "h3", "code", "script", "style"):
            self._open.append(tag)
            self._get_texts(tag).append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self._words.append(data)
        for tag in self._open:
            self._get_texts(tag)[-1] += data

    def _get_texts(self, tag: str) -> list[str]:
        return self.headings if tag[0] == "h" else self.codes


def read_site(site: Path) -> dict[str, SitePage]:
    """Return the pages of the built site by name, without the one for wrong addresses."""
    pages = {path.name: SitePage(path) for path in site.glob("*.html")}
    pages.pop("404.html", None)
    return pages
