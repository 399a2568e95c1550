"""The documentation: the site builds strictly and asks nobody outside, commands and examples in it work, figures stand where they were measured."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

from conftest import toy, write_folder
from regraft import plan as plans
from regraft.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
SPOKEN = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md"]
LEDGERS = [
    ROOT / "README.md",
    DOCS / "measured.md",
    DOCS / "experiments.md",
    ROOT / "benchmarks" / "RESULTS.md",
]


def lacking(*modules: str) -> str:
    """Return a sentence on what is not installed, empty where all is."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return (
        f"{', '.join(missing)} cannot be imported; pip install 'regraft[docs]' brings them"
        if missing
        else ""
    )


NO_SITE, NO_NOTEBOOK = (
    lacking("mkdocs", "material", "mkdocstrings_handlers"),
    lacking("nbclient", "nbformat", "ipykernel"),
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, the file it is, whether it is to be run."""

    language: str
    title: str
    body: str
    run: bool


def blocks(text: str) -> list[Block]:
    found = re.findall(
        r'^(<!-- run -->\n)?```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', text, flags=re.S | re.M
    )
    return [Block(language, title, body, bool(mark)) for mark, language, title, body in found]


def commands(text: str) -> list[list[str]]:
    """Return the words of every `regraft` command in some lines of shell."""
    found = []
    for line in text.splitlines():
        for part in re.split(r"&&|\|(?!\w)|;|   or   ", line):
            words = shlex.split(part, comments=True)
            while words and "=" in words[0] and words[0].isupper():
                words.pop(0)
            if words[:1] == ["regraft"]:
                found.append(words[1:])
    return found


def parsed(words: list[str]) -> str:
    """Return which verb these words call, found by the command line's own parser, which raises where a verb, a flag or an argument is wrong."""
    command = typer.main.get_command(app)
    context = command.make_context("regraft", list(words))
    name, rest = "", list(words)
    while hasattr(command, "commands") and rest:
        given, command, rest = command.resolve_command(context, rest)
        context, name = (
            command.make_context(given, list(rest), parent=context),
            f"{name} {given}".strip(),
        )
    return name


def verbs(command: object = None, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield every verb with its command, inner ones too."""
    command = command or typer.main.get_command(app)
    if name:
        yield name, command
    for inner, one in getattr(command, "commands", {}).items():
        yield from verbs(one, f"{name} {inner}".strip())


def flags(command: object) -> set[str]:
    return {
        flag
        for one in command.params
        for flag in (*one.opts, *one.secondary_opts)
        if flag.startswith("-")
    }  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly."""
    if NO_SITE:
        pytest.skip(NO_SITE)
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return out


class Read(HTMLParser):
    """What a page of the site holds: where it points to, what it loads, its anchors, its words, its headings."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loaded, self.anchors, self.words, self.headings, self.codes = (
            [],
            [],
            set(),
            [],
            [],
            [],
        )  # type: ignore[var-annotated]
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(given["id"])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") in (
            "stylesheet",
            "preload",
            "preconnect",
            "icon",
            "shortcut icon",
        ):
            self.loaded.append(given["href"])
        if tag in ("h1", "h2", "h3", "code", "script", "style"):
            self.open.append(tag)
            (self.headings if tag[0] == "h" else self.codes).append("")

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.words.append(data)
        for tag in self.open:
            (self.headings if tag[0] == "h" else self.codes)[-1] += data


def test_the_site_builds_strictly_with_every_page_and_loads_nothing_from_outside(
    site: Path,
) -> None:
    made = {path.name: Read(path) for path in site.glob("*.html") if path.name != "404.html"}
    assert {path.stem for path in PAGES} <= {name.removesuffix(".html") for name in made}
    assert len(made) >= 16
    seen = 0
    for name, page in made.items():
        assert len(page.text) > 1000, name
        for source in page.loaded:
            seen += 1
            assert not urlsplit(source).netloc, (name, source)
            assert (site / unquote(urlsplit(source).path)).is_file(), (name, source)
    assert seen > 40
    for style in site.rglob("*.css"):
        assert not re.search(
            r"url\(['\"]?(https?:)?//|@import", style.read_text(encoding="utf-8")
        ), style
    assert not (site / "hooks.py").exists()


def test_links_between_pages_resolve_to_the_very_heading(site: Path) -> None:
    made = {path.name: Read(path) for path in site.glob("*.html") if path.name != "404.html"}
    seen = 0
    for name, page in made.items():
        for link in page.links:
            there = urlsplit(link)
            if there.scheme or there.netloc:
                continue
            target = unquote(there.path) or name
            assert (site / target).is_file(), (name, link)
            if there.fragment and target.endswith(".html"):
                seen += 1
                assert unquote(there.fragment) in made[target].anchors, (name, link)
    assert seen > 200


def test_links_in_the_repository_resolve_too() -> None:
    seen = 0
    for path in SPOKEN:
        for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                seen += 1
                assert (path.parent / link).exists(), (path.name, link)
    assert seen > 40


def test_every_verb_and_flag_is_on_its_page(site: Path) -> None:
    page = Read(site / "cli.html")
    headings = {heading.removesuffix("¶").strip() for heading in page.headings}
    known = dict(verbs())
    assert {f"regraft {name}" for name in known} <= headings
    shown = {word.strip(",") for code in page.codes for word in code.split()}
    asked = set().union(*(flags(command) for command in known.values()))
    assert asked <= shown
    assert len(known) > 20
    assert len(asked) > 30


def test_every_field_of_a_plan_and_every_word_of_a_head_is_on_its_page(site: Path) -> None:
    page = Read(site / "plan.html")
    fields = [*plans.Plan.model_fields.items(), *plans.Phase.model_fields.items()]
    for name, field in fields:
        assert name in page.codes, name
        assert re.sub(r"\s+", " ", (field.description or "").replace("`", "")) in page.text, name
    assert len(fields) > 30
    words = {code.split()[0] for code in page.codes if code.split()}
    assert set(plans.LAYERS) | set(plans.AUGMENTATIONS) <= words


@pytest.mark.skipif(bool(NO_SITE), reason=NO_SITE)
def test_the_whole_plan_on_its_page_is_one_and_leaves_nothing_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import hooks

    written = tomllib.loads(hooks.example())
    plan = plans.parse(written)
    assert plan.technique == "probe-then-fine-tune"
    assert set(written) == set(plans.Plan.model_fields)
    assert set(written["phases"][0]) == set(plans.Phase.model_fields)


def test_every_public_name_is_on_the_python_page(site: Path) -> None:
    import regraft

    anchors = Read(site / "python.html").anchors
    assert {f"regraft.{name}" for name in regraft.__all__} <= anchors
    assert len(regraft.__all__) >= 5


def test_every_command_in_a_fenced_block_is_one_that_the_command_line_takes() -> None:
    called = []
    for path in SPOKEN:
        for block in blocks(path.read_text(encoding="utf-8")):
            if block.language == "sh":
                for words in commands(block.body):
                    try:
                        called.append(parsed(words))
                    except Exception as error:
                        pytest.fail(
                            f"{path.name}: regraft {shlex.join(words)}: {type(error).__name__} {error}"
                        )
    assert len(called) > 70
    top = set(typer.main.get_command(app).commands)
    assert {name.split()[0] for name in called if name} == top  # and every verb is shown in use


def test_verbs_and_flags_named_in_a_sentence_exist() -> None:
    known = dict(verbs())
    scripts = {
        flag
        for path in (ROOT / "benchmarks").glob("*.py")
        for flag in re.findall(r'"(--[\w-]+)"', path.read_text(encoding="utf-8"))
    }
    all_flags = set().union(*(flags(command) for command in known.values())) | {"--help"} | scripts
    seen = 0
    for path in [*PAGES, ROOT / "README.md"]:
        text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
        for span in re.findall(r"`([^`\n]+)`", text):
            words = span.replace("…", "").split()
            if words[0] == "regraft" and len(words) > 1 and not words[1].isupper():
                name = words[1]
                assert name in known or name.startswith("-"), (path.name, span)
                mine = set().union(
                    *(flags(one) for verb, one in known.items() if verb.split()[0] == name)
                ) | {"--help"}
                assert {
                    word.partition("=")[0] for word in words if re.match(r"--\w", word)
                } <= mine, (path.name, span)
                seen += 1
            elif re.match(r"--\w", words[0]):
                assert words[0].partition("=")[0] in all_flags, (path.name, span)
                seen += 1
    assert seen > 60


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with photographs, from which modules are found."""
    write_folder(Path("photos"), replace(toy(90), classes=("cat", "dog", "horse")))
    monkeypatch.syspath_prepend(str(Path.cwd()))
    return Path.cwd()


RUN = {
    path.name: sum(block.run for block in blocks(path.read_text(encoding="utf-8")))
    for path in PAGES
}


@pytest.mark.parametrize("name", [name for name, count in RUN.items() if count])
def test_examples_run_as_they_stand(regraft, examples: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    space: dict[str, object] = {"__name__": "example"}
    ran = 0
    for block in blocks((DOCS / name).read_text(encoding="utf-8")):
        if block.title:
            (examples / block.title).write_text(block.body, encoding="utf-8")
        elif block.run and block.language == "python":
            exec(compile(block.body, f"{name} as it stands", "exec"), space)
            ran += 1
        elif block.run:
            for words in commands(block.body):
                done = regraft(*words)
                assert done.code == 0, (words, done.err)
            ran += 1
    assert ran == RUN[name]


def test_enough_is_run_and_every_file_of_an_example_is_used() -> None:
    assert sum(RUN.values()) >= 18
    text = (DOCS / "extending.md").read_text(encoding="utf-8")
    titles = [block.title.removesuffix(".py") for block in blocks(text) if block.title]
    ran = "\n".join(block.body for block in blocks(text) if block.run)
    assert len(titles) >= 4
    assert [title for title in titles if not re.search(rf"\b{title}\b", ran)] == []


def test_the_quick_start_names_every_file_of_a_run_and_of_a_comparison(
    regraft, photos: Path
) -> None:  # type: ignore[no-untyped-def]
    words = (
        "--techniques",
        "linear-probe",
        "--backbones",
        "test_resnet",
        "--weights",
        "random",
        "--resolution",
        "32",
        "-q",
        "--out",
        "board",
    )
    assert regraft("compare", photos, *words).code == 0
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    there = {
        path.name + ("/" if path.is_dir() else "")
        for folder in (Path("board"), Path("board/linear-probe"))
        for path in folder.iterdir()
    }
    assert {name for name in there - {"linear-probe/"} if f"`{name}`" not in text} == set()
    assert len(there) > 15


def test_no_figure_is_on_these_pages_that_was_not_measured() -> None:
    ledger = "\n".join(path.read_text(encoding="utf-8") for path in LEDGERS)
    measured = {float(number) for number in re.findall(r"\d*\.\d+", ledger.replace(",", ""))}
    seen = 0
    for name, least in (
        ("choosing.md", 1),
        ("cut.md", 2),
        ("evaluation.md", 3),
        ("faq.md", 3),
        ("index.md", 3),
        ("using.md", 3),
    ):
        text = re.sub(
            r"`[^`]*`|\]\([^)]*\)|[-\w]*e-\d", "", (DOCS / name).read_text(encoding="utf-8")
        )
        for number in re.findall(rf"(?<![\w.])\d*\.\d{{{least},}}", text):
            if number not in ("0.8", "3.4"):  # a default; millions of parameters
                seen += 1
                assert float(number) in measured, (name, number)
    assert seen > 80


@pytest.mark.skipif(bool(NO_NOTEBOOK), reason=NO_NOTEBOOK)
def test_the_notebook_is_kept_without_outputs_and_runs() -> None:
    import nbformat
    from nbclient import NotebookClient

    path = DOCS / "quickstart.ipynb"
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert [
        cell for cell in kept["cells"] if cell.get("outputs") or cell.get("execution_count")
    ] == []
    assert "/" not in json.dumps(kept["metadata"])
    book = nbformat.read(path, 4)
    NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(Path.cwd())}}
    ).execute()
    said = "".join(
        output.get("text", "") for cell in book.cells for output in cell.get("outputs", ())
    )
    assert "was selected on validation" in said
    assert Path("runs/digits-linear-probe/scores.json").is_file()
