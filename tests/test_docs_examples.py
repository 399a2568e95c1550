"""Commands and examples in the documentation work as they stand, and so does the notebook."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import toy, write_folder
from docpages import (
    DOCS,
    NO_NOTEBOOK,
    PAGES,
    PROSE,
    get_blocks,
    get_commands,
    get_verbs,
    parse_command,
)


def count_run_blocks(path: Path) -> int:
    """Return how many blocks of a page are run."""
    return sum(block.run for block in get_blocks(path))


RUN_COUNTS = {path.name: count_run_blocks(path) for path in PAGES}


def test_every_command_in_a_fenced_block_is_one_that_the_command_line_takes() -> None:
    called = []
    for path in PROSE:
        for block in get_blocks(path):
            if block.language != "sh":
                continue
            for words in get_commands(block.body):
                try:
                    called.append(parse_command(words))
                except Exception as error:
                    command = shlex.join(words)
                    pytest.fail(f"{path.name}: regraft {command}: {type(error).__name__} {error}")
    assert len(called) > 70
    shown = {name.split()[0] for name in called if name}
    assert shown == {name.split()[0] for name in get_verbs()}


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with photographs, from which modules are imported."""
    write_folder(Path("photos"), replace(toy(90), classes=("cat", "dog", "horse")))
    monkeypatch.syspath_prepend(str(Path.cwd()))
    return Path.cwd()


@pytest.mark.parametrize("name", [name for name, count in RUN_COUNTS.items() if count])
def test_examples_run_as_they_stand(regraft, examples: Path, name: str) -> None:
    namespace: dict[str, Any] = {"__name__": "example"}
    ran = 0
    for block in get_blocks(DOCS / name):
        if block.title:
            (examples / block.title).write_text(block.body, encoding="utf-8")
        elif block.run and block.language == "python":
            exec(compile(block.body, f"{name} as it stands", "exec"), namespace)
            ran += 1
        elif block.run:
            for words in get_commands(block.body):
                result = regraft(*words)
                assert result.code == 0, (words, result.err)
            ran += 1
    assert ran == RUN_COUNTS[name]


def test_enough_is_run_and_every_file_of_an_example_is_used() -> None:
    assert sum(RUN_COUNTS.values()) >= 18
    blocks = get_blocks(DOCS / "extending.md")
    titles = [block.title.removesuffix(".py") for block in blocks if block.title]
    code = "\n".join(block.body for block in blocks if block.run)
    assert len(titles) >= 4
    assert [title for title in titles if not re.search(rf"\b{title}\b", code)] == []


def test_the_quick_start_names_every_file_of_a_run_and_of_a_comparison(
    regraft, photos: Path
) -> None:
    options = "--backbones test_resnet --weights random --resolution 32 -q --out board"
    result = regraft("compare", photos, "--techniques", "linear-probe", *options.split())
    assert result.code == 0
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    paths = [*Path("board").iterdir(), *Path("board/linear-probe").iterdir()]
    names = {path.name + ("/" if path.is_dir() else "") for path in paths}
    assert {name for name in names - {"linear-probe/"} if f"`{name}`" not in text} == set()
    assert len(names) > 15


@pytest.mark.slow
@pytest.mark.skipif(bool(NO_NOTEBOOK), reason=NO_NOTEBOOK)
def test_the_notebook_is_kept_without_outputs_and_runs() -> None:
    import nbformat
    from nbclient import NotebookClient

    path = DOCS / "quickstart.ipynb"
    stored = json.loads(path.read_text(encoding="utf-8"))
    for cell in stored["cells"]:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
    assert "/" not in json.dumps(stored["metadata"])
    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(Path.cwd())}}
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
    printed = ""
    for cell in notebook.cells:
        printed += "".join(output.get("text", "") for output in cell.get("outputs", ()))
    assert "was selected on validation" in printed
    assert Path("runs/digits-linear-probe/scores.json").is_file()
