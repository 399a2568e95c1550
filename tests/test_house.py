"""The laws of the architecture: who may import whom, how plain a file is, what a stranger finds."""

from __future__ import annotations

import ast
import graphlib
import importlib
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from regraft.data.names import OUTPUT_MARKERS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "regraft"
TREES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
TESTS = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "tests").rglob("*.py"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LAYOUT_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def short(path: Path) -> str:
    """Return a path of the package as it is named in failures."""
    return str(path.relative_to(PACKAGE))


def run_tool(*words: str) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name(words[0])
    return subprocess.run([tool, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)


def nodes_of(kind: type | tuple[type, ...]) -> Iterator[tuple[Path, ast.AST]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield path, node


def docstrings(tree: ast.Module) -> list[ast.Constant]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and node.body:
            first = node.body[0]
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found.append(value)
    return found


# ── who imports whom


def test_imports_run_downwards_only() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    done = run_tool("lint-imports", "--no-cache")
    assert f"{len(contracts)} kept, 0 broken" in done.stdout, done.stdout[-3000:]
    assert len(contracts) >= 3


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("regraft", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(reversed(error.args[1])))
    assert len(imports) == len(TREES) > 100


def test_what_only_some_systems_have_is_used_behind_system() -> None:
    missing = {"resource", "fcntl", "pwd", "grp", "termios", "sched_getaffinity", "fork"}
    users = set()
    for path, node in nodes_of((ast.Import, ast.ImportFrom, ast.Attribute)):
        names = {alias.name for alias in getattr(node, "names", ())}
        names |= {getattr(node, "module", None), getattr(node, "attr", None)}
        if names & missing:
            users.add(short(path))
    assert {name for name in users if not name.startswith("system/")} == set()
    assert users


def test_what_is_imported_is_declared() -> None:
    project = PROJECT["project"]
    asked = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        asked += extra
    declared = {re.split(r"[><=\[ ;]", name)[0].lower().replace("-", "_") for name in asked}
    imported = set()
    for _, node in nodes_of((ast.Import, ast.ImportFrom)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported.add(node.module.split(".")[0])
    outside = imported - sys.stdlib_module_names - {"regraft"}
    packages = {"PIL": "pillow", "sklearn": "scikit_learn"}
    needed = {packages.get(name, name) for name in outside}
    assert needed - declared <= {"huggingface_hub"}  # timm brings it
    assert len(needed) > 12


# ── how plain a file is


def count_code(path: Path, tree: ast.Module) -> tuple[int, int]:
    """Return the nodes of a file, and its lines without docstrings, comments and blanks."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type not in LAYOUT_TOKENS:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for text in docstrings(tree):
        lines -= set(range(text.lineno, (text.end_lineno or 0) + 1))
    context = (ast.Load, ast.Store, ast.Del)
    nodes = sum(not isinstance(node, context) for node in ast.walk(tree))
    return nodes, len(lines)


def test_a_line_holds_one_thought() -> None:
    counts = {short(path): count_code(path, tree) for path, tree in TREES.items()}
    densities = {name: nodes / lines for name, (nodes, lines) in counts.items() if lines > 30}
    assert {name: round(value, 2) for name, value in densities.items() if value > 7.5} == {}
    nodes = sum(count[0] for count in counts.values())
    lines = sum(count[1] for count in counts.values())
    assert nodes / lines <= 6
    assert len(densities) > 80
    assert lines > 10_000


def expressions(statement: ast.stmt) -> list[ast.expr]:
    """Return the expressions of a statement itself, not of the statements in its body."""
    found = []
    for _, value in ast.iter_fields(statement):
        values = value if isinstance(value, list) else [value]
        found += [each for each in values if isinstance(each, ast.expr)]
    return found


def test_a_statement_has_one_comprehension_at_most() -> None:
    seen = 0
    crowded = []
    for path, node in nodes_of(ast.stmt):
        count = 0
        for expression in expressions(node):
            count += sum(isinstance(inner, COMPREHENSIONS) for inner in ast.walk(expression))
        seen += 1
        if count > 1:
            crowded.append(f"{short(path)}:{node.lineno}")
    assert not crowded, "\n".join(crowded)
    assert seen > 10_000


def test_lines_and_files_stay_short_and_are_laid_out_by_the_formatter() -> None:
    wide = []
    lengths = {}
    for path in TREES:
        lines = path.read_text().splitlines()
        lengths[short(path)] = len(lines)
        for number, line in enumerate(lines, 1):
            if len(line) > 100 or "fmt: skip" in line or "fmt: off" in line:
                wide.append(f"{short(path)}:{number}")
    assert not wide, "\n".join(wide)
    assert {name: count for name, count in lengths.items() if count > 400} == {}
    assert len(lengths) > 100


def test_functions_stay_small() -> None:
    lengths = {}
    for path, node in nodes_of(FUNCTIONS):
        statements = sum(isinstance(inner, ast.stmt) for inner in ast.walk(node)) - 1
        lengths[f"{short(path)}:{node.lineno} {node.name}"] = statements
    assert {name: count for name, count in lengths.items() if count > 40} == {}
    assert len(lengths) > 900


def test_functions_have_few_branches_and_six_arguments_and_one_exception() -> None:
    lint = PROJECT["tool"]["ruff"]["lint"]
    assert {"E", "C901", "PLR0913"} <= {*lint["select"], *lint["extend-select"]}
    assert {"C901", "PLR0913", "E501"}.isdisjoint(lint["ignore"])
    assert lint["pylint"]["max-args"] == 6
    assert lint["mccabe"]["max-complexity"] == 8
    done = run_tool("ruff", "check", "--select", "C901,PLR0913", "--output-format=concise", "src")
    assert done.returncode == 0, done.stdout
    excepted = {}
    for path in TREES:
        for line in path.read_text().splitlines():
            if re.search("noqa.*(C901|PLR)", line):
                excepted[short(path)] = line.partition("noqa: ")[2]
    assert list(excepted) == ["sklearn.py"]
    assert excepted["sklearn.py"].startswith("PLR0913  ")  # and then the reason


def test_every_file_opens_with_a_sentence_on_what_it_holds_and_no_utils_exist() -> None:
    for path, tree in TREES.items():
        doc = ast.get_docstring(tree)
        assert doc, path
        assert doc.split("\n")[0].endswith((".", "?")), path
    assert not [path for path in TREES if re.search("util|helper|misc|common", path.stem)]
    assert len(TREES) > 100


def test_public_functions_say_what_comes_out() -> None:
    seen = 0
    bare = []
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, *FUNCTIONS)) and not node.name.startswith("_"):
                if "overload" in [ast.unparse(mark) for mark in node.decorator_list]:
                    continue  # the function itself says it
                seen += 1
                if not ast.get_docstring(node):
                    bare.append(f"{short(path)}:{node.name}")
    assert not bare, "\n".join(bare)
    assert seen > 400


# ── what may be done where


def test_only_the_command_line_prints() -> None:
    printing = re.compile(r"print|sys\.(__)?std(out|err).*|rich\.print|(typer|click)\.s?echo")
    calls = 0
    prints = []
    for path, node in nodes_of((ast.Call, ast.Import, ast.ImportFrom)):
        if path.parent.name == "cli":
            continue
        if isinstance(node, ast.Call):
            calls += 1
            is_print = bool(printing.fullmatch(ast.unparse(node.func)))
        else:
            names = [getattr(node, "module", None) or node.names[0].name]
            is_print = names[0].split(".")[0] in ("rich", "typer", "click")
        if is_print:
            prints.append(f"{short(path)}:{node.lineno}")
    assert not prints, "\n".join(prints)
    assert calls > 4000


def layout_names() -> set[str]:
    layout = importlib.import_module("regraft.runs.layout")
    values = [value for name, value in vars(layout).items() if name.isupper()]
    return {value for value in values if isinstance(value, str) and "." in value}


# what marks a folder as our own result, for readers of images; what a folder for timm holds
OWN_FILES = {"data/names.py", "exporting/timm_folder.py"}


def test_the_file_names_of_a_run_are_spelled_in_runs_alone() -> None:
    names = layout_names()
    pattern = re.compile("|".join(rf"(?<![\w-]){re.escape(name)}" for name in names))
    seen = 0
    spelled = []
    for path, tree in TREES.items():
        if short(path) in OWN_FILES:
            continue
        prose = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                seen += node not in prose
                is_elsewhere = path.parent.name != "runs" and node not in prose
                if is_elsewhere and pattern.search(
                    node.value.replace("--save plan.toml", "")  # the user's own file
                ):
                    spelled.append(f"{short(path)}:{node.lineno} {node.value!r}")
    assert not spelled, "\n".join(spelled)
    assert set(OUTPUT_MARKERS) <= names
    assert len(names) >= 10
    assert seen > 3000


MUTABLE = (ast.Dict, ast.List, ast.Set, *COMPREHENSIONS)
CONTAINERS = {"dict", "list", "set", "defaultdict", "OrderedDict", "Counter", "deque"}
MUTATORS = {"append", "add", "update", "setdefault", "pop", "popitem", "clear", "extend", "remove"}


def containers(tree: ast.Module) -> set[str]:
    """Return the names of a module's dictionaries, lists and sets."""
    names = set()
    for node in tree.body:
        value = getattr(node, "value", None)
        is_call = isinstance(value, ast.Call) and ast.unparse(value.func) in CONTAINERS
        if isinstance(node, ast.Assign | ast.AnnAssign) and (isinstance(value, MUTABLE) or is_call):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def changed_names(tree: ast.Module) -> set[str]:
    """Return the names that functions of a module put something into, or take out of."""
    names = set()
    for function in ast.walk(tree):
        if not isinstance(function, FUNCTIONS):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Global):
                names |= set(node.names)
            elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
                names.add(ast.unparse(node.value))
            elif isinstance(node, ast.AugAssign):
                names.add(ast.unparse(node.target))
            elif isinstance(node, ast.Attribute) and node.attr in MUTATORS:
                names.add(ast.unparse(node.value))
    return names


def test_two_shelves_are_all_that_a_process_remembers() -> None:
    seen = 0
    shelves = set()
    globals_ = {name for _, node in nodes_of(ast.Global) for name in node.names}
    for path, tree in TREES.items():
        names = containers(tree)
        seen += len(names)
        shelves |= {f"{short(path)}:{name}" for name in names & (changed_names(tree) | globals_)}
    assert shelves <= {"data/load.py:SOURCES", "plans/techniques.py:TECHNIQUES"}
    assert not list(nodes_of(ast.Global))
    assert seen > 20


def test_what_is_computed_once_a_process_is_listed_here() -> None:
    cached = set()
    for path, node in nodes_of(FUNCTIONS):
        for decorator in node.decorator_list:
            if re.match(r"(functools\.)?(lru_)?cache\b", ast.unparse(decorator)):
                cached.add(f"{short(path)}:{node.name}")
    assert cached == {"models/backbone.py:model_info", "plans/recipes/__init__.py:all_recipes"}


def test_defaults_that_calls_share_are_frozen() -> None:
    names = PROJECT["tool"]["ruff"]["lint"]["flake8-bugbear"]["extend-immutable-calls"]
    for name in names:
        module, _, kind = name.rpartition(".")
        frozen = getattr(importlib.import_module(module), kind)
        assert frozen.__dataclass_params__.frozen, name
    assert len(names) >= 8


PATCH = re.compile(r"(.*\.)?((set|del)(attr|item)|patch(\.object|\.multiple|\.dict)?)")


def own_names(tree: ast.Module) -> set[str]:
    """Return the names that a test imports from regraft, and those of its modules."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "regraft":
                    names.add(alias.asname or "regraft")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "regraft":
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def is_own(target: ast.expr, names: set[str]) -> bool:
    """Return whether what is patched is ours: a name that was imported, or a dotted string."""
    if isinstance(target, ast.Constant):
        return str(target.value).split(".")[0] == "regraft"
    if isinstance(target, ast.Call):  # type(thing), or import_module("regraft.thing")
        return any(is_own(argument, names) for argument in target.args)
    while isinstance(target, ast.Attribute):
        target = target.value
    return isinstance(target, ast.Name) and target.id in names


def patched_by(node: ast.AST) -> list[ast.expr]:
    """Return what a node patches: the targets of assignments, and of calls that patch."""
    if isinstance(node, ast.Assign):
        return [target.value for target in node.targets if isinstance(target, ast.Attribute)]
    if isinstance(node, ast.Call) and node.args:
        return [node.args[0]] if PATCH.fullmatch(ast.unparse(node.func)) else []
    return []


def test_tests_patch_nothing_of_ours() -> None:
    seen = 0
    patched = []
    for path, tree in TESTS.items():
        names = own_names(tree)
        for node in ast.walk(tree):
            targets = patched_by(node)
            seen += len(targets)
            if any(is_own(target, names) for target in targets):
                patched.append(f"{path.name}:{node.lineno} {ast.unparse(node)[:60]}")
    assert not patched, "\n".join(patched)
    assert seen > 20
    assert len(TESTS) > 30


def test_the_law_on_patches_sees_each_kind() -> None:
    code = """
import regraft.runs as runs
from regraft.training.module import TransferModule
monkeypatch.setattr(runs, "load_run", None)
monkeypatch.setattr("regraft.runs.folder.load_run", None)
monkeypatch.setattr(runs.folder, "load_run", None)
mock.patch.object(TransferModule, "training_step")
mock.patch("regraft.runs.folder.load_run")
setattr(TransferModule, "training_step", None)
TransferModule.training_step = None
monkeypatch.setattr(type(TransferModule), "training_step", None)
monkeypatch.setattr(shutil, "disk_usage", None)
"""
    tree = ast.parse(code)
    names = own_names(tree)
    targets = [target for node in ast.walk(tree) for target in patched_by(node)]
    assert sum(is_own(target, names) for target in targets) == 8
    assert len(targets) == 9


# ── what loads no torch


def loads(words: str, module: str = "torch") -> bool:
    code = f"""
import sys
sys.argv = ['regraft', *{words.split()!r}]
from regraft.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print({module!r} in sys.modules)
"""
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


TORCH_FREE = (
    "regraft",
    "regraft.errors",
    "regraft.options",
    "regraft.data",
    "regraft.data.load",
    "regraft.plans",
    "regraft.plans.techniques",
    "regraft.evaluation.metrics",
    "regraft.evaluation.transferability",
    "regraft.runs.folder",
    "regraft.system.files",
    "regraft.system.progress",
)


def test_the_nouns_and_the_package_itself_load_no_torch() -> None:
    code = f"import sys, {', '.join(TORCH_FREE)}; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


# ── what a stranger finds


def test_the_public_modules_are_one_list_and_the_docs_import_no_other() -> None:
    text = (ROOT / "docs" / "stability.md").read_text()
    public = re.findall(r"^\| `(regraft[\w.]*)` \|", text, flags=re.M)
    assert public == ["regraft", "regraft.data", "regraft.plans", "regraft.sklearn"]
    names = 0
    for name in public:
        module = importlib.import_module(name)
        names += len(module.__all__)
        assert [each for each in module.__all__ if not hasattr(module, each)] == [], name
    assert names > 15
    imports = {}
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        found = re.findall(r"^\s*(?:from|import) (regraft[\w.]*)", path.read_text(), flags=re.M)
        for name in found:
            imports.setdefault(name, []).append(path.name)
    assert {name: pages for name, pages in imports.items() if name not in public} == {}
    assert len(imports) >= 3


def test_architecture_names_every_package_and_stays_short() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) < 120
    rows = re.findall(r"^\| `(?:regraft\.)?(\w+)(?:/|\.py)?` \| .+ \|$", text, flags=re.M)
    names = set()
    for path in PACKAGE.iterdir():
        is_module = path.suffix == ".py" or (path / "__init__.py").is_file()
        if is_module and not path.name.startswith("_"):
            names.add(path.stem)
    assert sorted(rows) == sorted(names)
    assert len(names) >= 19
    picture = text.partition("```\n")[2].partition("```")[0]
    columns = [line[:55] for line in picture.splitlines()]
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    drawn = [sorted(re.findall(r"\w+", column)) for column in columns]
    assert drawn == [sorted(re.findall(r"\w+", layer)) for layer in layers]
    for file in set(re.findall(r"`((?:src|tests|docs|benchmarks)/[\w/.-]+)`", text)):
        assert (ROOT / file).exists(), file


def test_no_file_of_the_package_is_ignored_by_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    paths = [str(path.relative_to(ROOT)) for path in TREES]
    words = ["git", "check-ignore", "--no-index", *paths]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert len(paths) > 100


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


def test_every_import_of_the_package_is_declared() -> None:
    lines = list(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        lines += extra
    declared = {re.split(r"[^\w-]", line)[0].lower().replace("-", "_") for line in lines}
    modules = {"sklearn": "scikit_learn", "PIL": "pillow"}
    imported = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {"regraft"}
    assert len(foreign) > 15
    assert {modules.get(name, name).lower() for name in foreign} <= declared
