"""The site builds without a warning and asks nobody outside; its tables and figures are true."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from click import Command

from docpages import (
    DOCS,
    LEDGERS,
    NO_SITE,
    PAGES,
    PROSE,
    ROOT,
    SitePage,
    get_flags,
    get_prose,
    get_verbs,
    read_site,
)
from regraft.plans.head import HEAD_LAYERS
from regraft.plans.schema import AUGMENTATIONS, Phase, Plan
from regraft.plans.toml import parse_plan

needs_builder = pytest.mark.skipif(bool(NO_SITE), reason=NO_SITE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `python docs/build.py` builds it."""
    if NO_SITE:
        pytest.skip(NO_SITE)
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, str(DOCS / "build.py"), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "No issues found" in output, output
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, SitePage]:
    return read_site(site)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module `docs/build.py`."""
    monkeypatch.syspath_prepend(str(DOCS))
    import build

    return build


def test_every_page_is_on_the_site_and_nothing_is_loaded_from_outside(
    site: Path, pages: dict[str, SitePage]
) -> None:
    assert {f"{path.stem}.html" for path in PAGES} <= set(pages)
    assert len(pages) >= 16
    seen = 0
    for name, page in pages.items():
        assert len(page.text) > 1000, name
        for source in page.loaded:
            seen += 1
            assert not urlsplit(source).netloc, (name, source)
            assert (site / unquote(urlsplit(source).path)).is_file(), (name, source)
    assert seen > 40
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", text), style
    assert not list(site.glob("*.py"))
    assert (site / "quickstart.ipynb").is_file()


def test_no_marker_is_left_on_the_site(site: Path) -> None:
    for path in site.glob("*.html"):
        assert "<!-- made:" not in path.read_text(encoding="utf-8"), path.name


def test_links_between_pages_resolve_to_the_very_heading(
    site: Path, pages: dict[str, SitePage]
) -> None:
    seen = 0
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = unquote(parts.path) or name
            assert (site / target).is_file(), (name, link)
            if parts.fragment and target.endswith(".html"):
                seen += 1
                assert unquote(parts.fragment) in pages[target].anchors, (name, link)
    assert seen > 200


def test_links_in_the_repository_resolve_too() -> None:
    seen = 0
    for path in PROSE:
        text = path.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
            if not link.startswith("http"):
                seen += 1
                assert (path.parent / link).exists(), (path.name, link)
    assert seen > 40


@needs_builder
@pytest.mark.parametrize(
    ("page", "text", "fault"),
    [
        ("faq.md", "[a](none.md)", "faq.md links to none.md, which does not exist"),
        ("faq.md", "[a](none.md#there)", "faq.md links to none.md, which does not exist"),
        ("faq.md", "![a](images/none.png)", "faq.md links to images/none.png, which does not"),
        ("faq.md", "[a](none.ipynb)", "faq.md links to none.ipynb, which does not exist"),
        ("extra.md", "# Extra", "extra.md is not in the navigation"),
        ("faq.md", None, "the navigation names faq.md, which does not exist"),
    ],
)
def test_faults_that_the_builder_lets_pass_are_found(
    builder: ModuleType, tmp_path: Path, page: str, text: str | None, fault: str
) -> None:
    builder.write_site_source(tmp_path)
    assert list(builder.find_faults(tmp_path)) == []
    path = tmp_path / "pages" / page
    if text is None:
        path.unlink()
    else:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n\n`[code](none.md)`\n\n```md\n[code](none.md)\n```\n")
    faults = list(builder.find_faults(tmp_path))
    assert faults[0].startswith(fault)
    if text is not None:  # else links to the page that is gone follow
        assert len(faults) == 1


@needs_builder
def test_a_marker_that_names_nothing_stops_the_build(builder: ModuleType) -> None:
    with pytest.raises(KeyError, match="nothing of the kind"):
        builder.fill_in_tables("<!-- made: nothing of the kind -->")


def test_every_verb_and_flag_is_on_its_page(pages: dict[str, SitePage]) -> None:
    page = pages["cli.html"]
    headings = {heading.removesuffix("¶").strip() for heading in page.headings}
    verbs = get_verbs()
    assert {f"regraft {name}" for name in verbs} <= headings
    shown = {word.strip(",") for code in page.codes for word in code.split()}
    flags = get_flags(*verbs.values())
    assert flags <= shown
    assert len(verbs) > 20
    assert len(flags) > 30


def test_every_field_of_a_plan_and_every_word_of_a_head_is_on_its_page(
    pages: dict[str, SitePage],
) -> None:
    page = pages["plan.html"]
    fields = [*Plan.model_fields.items(), *Phase.model_fields.items()]
    for name, field in fields:
        assert name in page.codes, name
        description = (field.description or "").replace("`", "")
        assert re.sub(r"\s+", " ", description) in page.text, name
    assert len(fields) > 30
    words = {code.split()[0] for code in page.codes if code.split()}
    assert set(HEAD_LAYERS) | set(AUGMENTATIONS) <= words


def test_the_whole_plan_on_its_page_is_one_and_leaves_nothing_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import reference

    document = tomllib.loads(reference.get_example_plan())
    plan = parse_plan(document)
    assert plan.technique == "probe-then-fine-tune"
    assert set(document) == set(Plan.model_fields)
    assert set(document["phases"][0]) == set(Phase.model_fields)


def test_every_public_name_is_on_the_python_page(pages: dict[str, SitePage]) -> None:
    import regraft

    assert {f"regraft.{name}" for name in regraft.__all__} <= pages["python.html"].anchors
    assert len(regraft.__all__) >= 5


def test_verbs_and_flags_named_in_a_sentence_exist() -> None:
    verbs = get_verbs()
    script_flags: set[str] = set()
    for path in (ROOT / "benchmarks").glob("*.py"):
        script_flags |= set(re.findall(r'"(--[\w-]+)"', path.read_text(encoding="utf-8")))
    docs_flags = set(re.findall(r'"(--[\w-]+)"', (DOCS / "build.py").read_text(encoding="utf-8")))
    all_flags = get_flags(*verbs.values()) | {"--help"} | script_flags | docs_flags
    seen = 0
    for path in [*PAGES, ROOT / "README.md"]:
        for span in re.findall(r"`([^`\n]+)`", get_prose(path)):
            words = span.replace("…", "").split()
            if words[0] == "regraft" and len(words) > 1 and not words[1].isupper():
                check_command_span(words[1:], verbs, (path.name, span))
                seen += 1
            elif re.match(r"--\w", words[0]):
                assert words[0].partition("=")[0] in all_flags, (path.name, span)
                seen += 1
    assert seen > 60


def check_command_span(words: list[str], verbs: dict[str, Command], place: tuple[str, str]) -> None:
    """Assert that `regraft WORDS` in a sentence names a verb and flags of that verb."""
    verb = words[0]
    assert verb in verbs or verb.startswith("-"), place
    commands = [command for name, command in verbs.items() if name.split()[0] == verb]
    known = get_flags(*commands) | {"--help"}
    flags = {word.partition("=")[0] for word in words[1:] if re.match(r"--\w", word)}
    assert flags <= known, place


def test_no_figure_is_on_these_pages_that_was_not_measured() -> None:
    ledger = "\n".join(path.read_text(encoding="utf-8") for path in LEDGERS)
    measured = {float(number) for number in re.findall(r"\d*\.\d+", ledger.replace(",", ""))}
    digits = {  # figures with so many digits behind the point are looked up
        "choosing.md": 1,
        "cut.md": 2,
        "evaluation.md": 3,
        "faq.md": 3,
        "index.md": 3,
        "using.md": 3,
    }
    not_measured = ("0.8", "3.4")  # a default; millions of parameters
    seen = 0
    for name, least in digits.items():
        page = (DOCS / name).read_text(encoding="utf-8")
        text = re.sub(r"`[^`]*`|\]\([^)]*\)|[-\w]*e-\d", "", page)
        for number in re.findall(rf"(?<![\w.])\d*\.\d{{{least},}}", text):
            if number not in not_measured:
                seen += 1
                assert float(number) in measured, (name, number)
    assert seen > 80
