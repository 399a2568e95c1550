"""Builds the site: `python docs/build.py` writes all pages as plain Markdown, then runs Zensical.

Zensical reads `mkdocs.yml` and runs no hooks, so tables made from the code and pages from
outside of `docs/` are written first.
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import reference

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# Pages of the site that lie outside of docs/, by their name on the site.
OUTSIDE = {
    "architecture.md": "ARCHITECTURE.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "results.md": "benchmarks/RESULTS.md",
}
_MARKER = re.compile(r"^<!-- made: (.+?) -->$", re.MULTILINE)
_RELATIVE_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def write_site_source(folder: Path) -> None:
    """Write `mkdocs.yml` and `pages/` into a folder, everything that the builder reads.

    Raises:
        KeyError: a marker `<!-- made: NAME -->` names nothing in `reference.MAKERS`.
    """
    pages = folder / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(DOCS, pages, ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", folder)
    sources = {path.name: f"docs/{path.name}" for path in sorted(DOCS.glob("*.md"))}
    for name, source in (sources | OUTSIDE).items():
        markdown = (ROOT / source).read_text(encoding="utf-8")
        page = fill_in_tables(rewrite_links(markdown, source))
        (pages / name).write_text(page, encoding="utf-8")


def fill_in_tables(markdown: str) -> str:
    """Return a page with Markdown made from the code in place of each `<!-- made: NAME -->`."""
    return _MARKER.sub(lambda marker: reference.MAKERS[marker[1]](), markdown)


def rewrite_links(markdown: str, source: str) -> str:
    """Return a page whose links hold on the site, where all pages lie side by side.

    Args:
        source: the page's path in the repository, for example `benchmarks/RESULTS.md`.
    """
    site_names = {path: name for name, path in OUTSIDE.items()}

    def get_target(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        if target in site_names:
            return site_names[target]
        return target.removeprefix("docs/") if target.startswith("docs/") else link[1]

    return _RELATIVE_LINK.sub(get_target, markdown)


def find_faults(folder: Path) -> Iterator[str]:
    """Yield a sentence for each fault that Zensical's strict mode lets pass (as of 0.0.73).

    These are links to files and pictures that do not exist, and a navigation that lacks a page
    or names one too many.
    """
    pages = folder / "pages"
    names = {path.name for path in pages.glob("*.md")}
    config = yaml.safe_load((folder / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(get_nav_pages(config["nav"]))
    for name in sorted(names - listed):
        yield f"{name} is not in the navigation; add it to nav in mkdocs.yml"
    for name in sorted(listed - names):
        yield f"the navigation names {name}, which does not exist; see nav in mkdocs.yml"
    for name in sorted(names):
        text = _CODE.sub("", (pages / name).read_text(encoding="utf-8"))
        for target in _RELATIVE_LINK.findall(text):
            if not (pages / target).is_file():
                yield f"{name} links to {target}, which does not exist"


def get_nav_pages(nav: list[Any]) -> Iterator[str]:
    """Yield the file names in a navigation of `mkdocs.yml`."""
    for entry in nav:
        for target in entry.values():
            if isinstance(target, list):
                yield from get_nav_pages(target)
            else:
                yield target


def run_builder(folder: Path, *words: str) -> int:
    """Return the exit status of Zensical, run in a folder; mkdocstrings reads this checkout."""
    search_path = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path)}
    command = [sys.executable, "-m", "zensical", *words]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def main() -> int:
    """Return the exit status: 0 where the whole site was built without a warning."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=ROOT / "build" / "docs",
        help="where to write; the site is in site/ below it (build/docs by default)",
    )
    parser.add_argument("--serve", action="store_true", help="serve the site on this machine, too")
    options = parser.parse_args()
    write_site_source(options.folder)
    faults = list(find_faults(options.folder))
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        return 1
    if options.serve:
        return run_builder(options.folder, "serve")
    return run_builder(options.folder, "build", "--strict", "--clean")


if __name__ == "__main__":
    sys.exit(main())
