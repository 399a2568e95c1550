"""The Python functions: every verb, its keywords, and the typed results that they return."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regraft
from conftest import toy, write_folder
from docpages import DOCS
from regraft.commands import keywords
from regraft.errors import UserError
from regraft.options import PlanOverrides
from regraft.runs.folder import load_run
from regraft.runs.scores import RunScores, parse_record
from regraft.system.progress import ProgressReporter

VERBS: dict[str, type] = {
    "fit": keywords.FitKeywords,
    "compare": keywords.CompareKeywords,
    "probe": keywords.ProbeKeywords,
    "plan": keywords.PlanKeywords,
    "check": keywords.CheckKeywords,
    "evaluate": keywords.EvaluateKeywords,
    "report": keywords.ReportKeywords,
    "predict": keywords.PredictKeywords,
    "export": keywords.ExportKeywords,
    "embed": keywords.EmbedKeywords,
}
PUBLIC_MODULES = ("regraft", "regraft.data", "regraft.plans", "regraft.sklearn")
RESULTS = (
    "regraft.runs.folder:Run",
    "regraft.runs.scores:RunScores",
    "regraft.runs.scores:OpenedTest",
    "regraft.commands.compare:Comparison",
    "regraft.reporting.leaderboard:Leaderboard",
    "regraft.reporting.leaderboard:LeaderboardRow",
    "regraft.commands.probe:Probe",
    "regraft.probing.result:ProbeResult",
    "regraft.commands.plan:PlanForecast",
    "regraft.commands.check:Check",
    "regraft.checks.findings:Findings",
    "regraft.commands.evaluate:Evaluation",
    "regraft.evaluation.metrics:Metrics",
    "regraft.commands.report:Report",
    "regraft.reporting.evidence:Evidence",
    "regraft.reporting.evidence:RunEvidence",
    "regraft.inference.classifier:Prediction",
    "regraft.inference.classifier:Classifier",
    "regraft.commands.predict:PredictionSummary",
    "regraft.exporting.export:ExportReport",
    "regraft.commands.embed:Embedding",
)


def run_python(code: str) -> str:
    """Return what a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()


# names


def test_importing_the_package_loads_none_of_the_heavy_libraries() -> None:
    heavy = ("torch", "timm", "sklearn", "scipy", "pydantic", "numpy", "matplotlib")
    assert (
        run_python(f"import sys, regraft; print([n for n in {heavy} if n in sys.modules])") == "[]"
    )


def test_every_public_name_is_there_and_listed() -> None:
    for name in regraft.__all__:
        assert getattr(regraft, name).__name__ == name
    assert set(regraft.__all__) <= set(dir(regraft))
    assert set(VERBS) | {"load"} <= set(regraft.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'TransferClassifer'"):
        regraft.TransferClassifer  # noqa: B018
    for name in PUBLIC_MODULES:
        module = import_module(name)
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public), (name, public)


def test_no_module_is_called_like_a_verb_and_takes_its_place() -> None:
    names = ", ".join(f"regraft.commands.{verb}" for verb in VERBS)
    code = f"import regraft, {names}; print([callable(getattr(regraft, v)) for v in {list(VERBS)}])"
    assert run_python(code) == str([True] * len(VERBS))
    package = Path(inspect.getfile(regraft)).parent
    modules = {path.stem for path in package.iterdir()}
    assert modules & {*VERBS, "load"} == set()


# keywords


def get_annotation(value: Any) -> str:
    return str(getattr(value, "__forward_arg__", value))


def test_keywords_have_the_names_and_the_types_of_the_options() -> None:
    from regraft.commands.options import PredictionTarget, PredictOptions

    fields: dict[str, set[str]] = {}
    for group in (*keywords.GROUPS, PredictOptions, PredictionTarget):
        for field in dataclasses.fields(group):
            fields.setdefault(field.name, set()).add(str(field.type))
    seen = 0
    for verb, typed in VERBS.items():
        for name, annotation in typed.__annotations__.items():
            assert get_annotation(annotation) in fields[name], (verb, name)
            seen += 1
    assert seen > 80
    groups = [field.name for group in keywords.GROUPS for field in dataclasses.fields(group)]
    assert len(groups) == len(set(groups))
    assert set(keywords.FitKeywords.__annotations__) == set(groups) - {"backbone"}


def test_keywords_become_the_options_that_they_are_called_like() -> None:
    values = {
        "train_images": 3,
        "cache_dir": "c",
        "device": "cpu",
        "out": "o",
        "track": "csv",
        "overrides": ("head=bn",),
        "backbone": "x",
    }
    overrides, options = keywords.to_options(values)
    assert overrides == PlanOverrides(backbone="x", overrides=("head=bn",))
    assert (options.data.train_images, options.cache.cache_dir) == (3, "c")
    assert (options.runtime.device, options.run_dir.out, options.run_dir.track) == (
        "cpu",
        "o",
        "csv",
    )


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_keyword_is_refused_with_the_nearest_name(verb: str) -> None:
    known = list(VERBS[verb].__annotations__)
    wrong = f"{known[0]}s"
    with pytest.raises(UserError) as caught:
        getattr(regraft, verb)("digits", "x", **{wrong: 1})
    text = str(caught.value)
    assert f"No keyword of regraft.{verb} is called {wrong!r}. Did you mean {known[0]!r}" in text
    assert all(name in text for name in known)


def test_a_keyword_of_the_first_version_is_refused_with_its_new_name() -> None:
    with pytest.raises(UserError, match="It is called 'overrides'"):
        regraft.fit("digits", changes=["phases.0.epochs=1"])  # type: ignore[call-arg]


@pytest.mark.parametrize("verb", VERBS)
def test_the_signature_shows_every_keyword_with_its_default(verb: str) -> None:
    function = getattr(regraft, verb)
    parameters = inspect.signature(function).parameters
    assert "options" not in parameters
    for name in VERBS[verb].__annotations__:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default is not inspect.Parameter.empty
        assert f"\n    {name}: " in function.__doc__, name
    named = [item for item in parameters.values() if item.kind is not item.KEYWORD_ONLY]
    assert len(named) <= 6
    assert function.__doc__.index("Args:") < function.__doc__.index("Keywords:")


def test_public_signatures_hold_no_untyped_dict() -> None:
    seen = 0
    for owner, function in get_public_functions():
        for name, annotation in inspect.get_annotations(function).items():
            seen += 1
            if owner.endswith(".to_json") or "model_" in owner:
                continue
            assert not re.search(r"[dD]ict\[str, Any\]", str(annotation)), (owner, name)
    assert seen > 200


def get_public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield public functions, and methods and properties of public classes and results."""
    kinds = [getattr(import_module(path.split(":")[0]), path.split(":")[1]) for path in RESULTS]
    for module_name in PUBLIC_MODULES:
        module = import_module(module_name)
        for name in getattr(module, "__all__", ["TransferClassifier"]):
            value = getattr(module, name)
            if inspect.isclass(value):
                kinds.append(value)
            elif inspect.isfunction(value):
                yield f"{module_name}.{name}", inspect.unwrap(value)
    for kind in kinds:
        for name, value in vars(kind).items():
            function = getattr(value, "fget", None) or getattr(value, "func", value)
            if inspect.isfunction(function) and not name.startswith("_"):
                yield f"{kind.__name__}.{name}", function
        yield f"{kind.__name__}.__init__", kind.__init__


# results


@dataclass(frozen=True)
class Done:
    """One result of every verb on the same few images."""

    folder: Path
    options: dict[str, Any]
    run: regraft.Run
    comparison: regraft.Comparison
    probe: regraft.Probe


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("api")
    photos = write_folder(folder / "photos", toy())
    options: dict[str, Any] = {"weights": "random", "cache_dir": folder / "cache"}
    sized = {**options, "resolution": 32}
    run = regraft.fit(photos, backbone="test_resnet", out=folder / "run", **sized)
    comparison = regraft.compare(
        photos, ["linear-probe", "fine-tune-top"], ["test_resnet"], 1,
        out=folder / "compare", overrides=["phases.0.epochs=1"], **sized,
    )  # fmt: skip
    probe = regraft.probe(photos, ["test_resnet"], [32], out=folder / "probe", **options)
    return Done(folder, options, run, comparison, probe)


def test_a_run_has_typed_scores_that_read_like_the_file(done: Done) -> None:
    scores = done.run.scores
    written = json.loads((done.run.path / "scores.json").read_text())
    assert scores.to_json() == written
    assert scores.val.accuracy == scores["val"]["accuracy"] == written["val"]["accuracy"]
    assert scores.parameters.total == written["parameters"]["total"]
    assert (scores.contract, scores.origin.split_seed, scores.format) == ("kept", 0, 1)
    assert done.run.to_json() == {**written, "path": str(done.run.path), "warnings": []}


def test_scores_of_other_versions_are_read_and_keep_their_keys(done: Done) -> None:
    written = done.run.scores.to_json()
    later = {**written, "later": [1], "val": {**written["val"], "later": 2}}
    scores = parse_record(RunScores, later)
    assert (scores["later"], scores["val"]["later"], scores.val.n) == ([1], 2, written["val"]["n"])
    old = {name: value for name, value in written.items() if name not in ("format", "skipped")}
    assert parse_record(RunScores, old).format == 0
    for name in ("val", "split_digest", "backbone"):
        with pytest.raises(ValueError, match=f"^{name}: "):
            parse_record(RunScores, {key: value for key, value in written.items() if key != name})


def test_a_run_whose_scores_lack_something_is_damaged(done: Done, tmp_path: Path) -> None:
    for name in ("plan.toml", "classes.json"):
        (tmp_path / name).write_bytes((done.run.path / name).read_bytes())
    (tmp_path / "scores.json").write_text('{"val": {"accuracy": 1.0, "n": 3}}')
    with pytest.raises(UserError, match="is damaged"):
        load_run(tmp_path)


def test_verbs_take_a_run_or_its_folder(done: Done, tmp_path: Path) -> None:
    image = next((done.folder / "photos").rglob("*.png"))
    for run in (done.run, done.run.path, str(done.run.path)):
        classifier = regraft.load(run, "cpu")
        assert classifier.run.path == Path(done.run.path)
        (prediction,) = regraft.predict(run, image, device="cpu")
        assert prediction.label == classifier.predict([image])[0] == image.parent.name
        evaluation = regraft.evaluate(run)
        assert evaluation.metrics.scores.accuracy == done.run.scores.val.accuracy
    assert regraft.load(done.run).run is done.run
    out = tmp_path / "rows.csv"
    summary = regraft.predict(done.run, [image], out, top=2)
    assert (summary.rows, summary.format) == (1, "csv")
    with pytest.raises(UserError, match="exists already"):
        regraft.predict(done.run, [image], out, top=2)
    assert regraft.predict(done.run, [image], out, top=2, resume=True).new == 0


def test_an_export_a_report_and_an_embedding_are_typed(done: Done, tmp_path: Path) -> None:
    exported = regraft.export(done.run, "safetensors", tmp_path / "run.safetensors")
    assert (exported.kind, exported.parity.other_class) == ("safetensors", 0)
    page = regraft.report([done.comparison], out=tmp_path / "page.html")
    assert page.evidence.board.selected == done.comparison.leaderboard.selected
    assert page.path.is_file()
    one = regraft.report(done.run, format="md", out=tmp_path / "page.md")
    assert one.evidence.runs[0].measures.scores.n == done.run.scores.val.n
    embedding = regraft.embed(done.folder / "photos", "test_resnet", 32, **done.options)
    assert embedding.features.shape == (len(embedding.keys), 96)
    assert set(embedding.parts) == {"train", "val", "test"}
    assert embedding.to_table()["label"].to_pylist() == embedding.labels.tolist()


def test_a_plan_a_check_and_a_reporter(done: Done) -> None:
    class Lines(ProgressReporter):
        def log(self, text: str) -> None:
            lines.append(text)

    lines: list[str] = []
    photos = done.folder / "photos"
    forecast = regraft.plan(photos, "fine-tune-top", "test_resnet", resolution=32, **done.options)
    assert forecast.plan.technique == "fine-tune-top"
    assert forecast.phases[-1].train == "layer4"
    checked = regraft.check(photos, "test_resnet", resolution=32, **done.options)
    assert checked.findings.images == forecast.images
    again = regraft.fit(
        photos, plan=forecast.plan, overrides=["phases.0.epochs=1"], out="again",
        reporter=Lines(), cache_dir=done.options["cache_dir"],
    )  # fmt: skip
    assert again.plan.seed == forecast.plan.seed
    assert lines
    found = regraft.compare(
        photos, from_probe=done.probe.path, out="from", cache_dir=done.options["cache_dir"]
    )
    assert {run.name.split("-")[0] for run in found.runs} == {"probe"}


# what `--json` prints is documented


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `docs/json_reference.py`."""
    monkeypatch.syspath_prepend(str(DOCS))
    return import_module("json_reference")


def check_keys(module: Any, name: str, values: dict[str, Any]) -> int:
    """Assert that an object has documented keys only, also inside; returns how many objects."""
    types = {row.key: row.type for row in module.get_rows(module.TABLES[name])}
    rest = types.pop("every other key", "")
    if rest:
        other = get_link(module, rest)
        types = {**{row.key: row.type for row in module.get_rows(module.TABLES[other])}, **types}
    seen = 1
    for key, value in values.items():
        assert key in types, (name, key)
        for link, item in zip_links(module, types[key], value):
            seen += check_keys(module, link, item)
    return seen


def get_link(module: Any, text: str) -> str:
    anchor = re.findall(r"\(#(\w+)\)", text)[0]
    names = {table.lower(): table for table in module.TABLES}
    return module.VERBS.get(anchor) or names[anchor]


def zip_links(module: Any, text: str, value: Any) -> Iterator[tuple[str, Any]]:
    if "(#" not in text or value is None:
        return
    items = value if isinstance(value, list) else [value]
    if text.startswith("object of"):
        items = list(value.values())
    for item in items:
        link = "FailedRow" if "error" in item and "FailedRow" in text else get_link(module, text)
        yield link, item


def test_every_key_of_every_verb_is_documented(done: Done, tables: Any, tmp_path: Path) -> None:
    photos = done.folder / "photos"
    sized = {**done.options, "resolution": 32}
    image = next(photos.rglob("*.png"))
    results = {
        "fit": done.run,
        "compare": done.comparison,
        "probe": done.probe,
        "plan": regraft.plan(photos, "fine-tune-top", "test_resnet", **sized),
        "check": regraft.check(photos, "test_resnet", **sized),
        "evaluate": regraft.evaluate(done.comparison.runs[0], photos, "test"),
        "report": regraft.report(done.comparison, out=tmp_path / "page.html"),
        "predict": regraft.predict(done.run, [image], tmp_path / "rows.csv"),
        "export": regraft.export(done.run, "safetensors", tmp_path / "x.safetensors"),
        "embed": regraft.embed(photos, "test_resnet", 32, **done.options),
    }
    assert set(results) == set(VERBS) == set(tables.VERBS)
    seen = 0
    for verb, result in results.items():
        values = json.loads(json.dumps(result.to_json()))
        name = tables.VERBS[verb]
        seen += check_keys(tables, name, values)
        required = {row.key for row in tables.get_rows(tables.TABLES[name])}
        missing = required - set(values) - {"every other key"}
        assert missing <= {"all", "as_fitted", "quantised"}, verb
    assert seen > 100


def test_a_meaning_is_read_from_wrapped_lines_of_a_docstring(tables: Any) -> None:
    text = "What.\n\n    Args:\n        one: First\n            and more.\n        two: Second.\n\n    Raises:\n        x: no\n"
    read = dict(tables.read_arguments(text.partition("Raises")[0]))
    assert read == {"one": "First and more.", "two": "Second."}


# notebooks


def test_results_show_themselves_in_a_notebook(done: Done) -> None:
    run, comparison, probe = done.run, done.comparison, done.probe
    page = run._repr_html_()
    assert "<svg" in page
    assert f"{run.scores.val.accuracy:.4f}" in page
    assert "test_resnet" in page
    page = comparison._repr_html_()
    assert "data:image/png;base64," in page
    assert all(row.name in page for row in comparison.leaderboard.rows)
    assert comparison.leaderboard.verdict.split(";")[0] in page
    page = probe._repr_html_()
    assert "data:image/png;base64," in page
    assert all(choice.budget in page for choice in probe.result.recommendations)


def test_names_in_a_notebook_are_escaped_and_a_lost_picture_is_left_out(
    done: Done, tmp_path: Path
) -> None:
    name = "<script>alert(1)</script>"
    page = replace(done.run, label=name)._repr_html_()
    assert name not in page
    assert "&lt;script&gt;" in page
    row = replace(done.comparison.leaderboard.rows[0], name=name)
    board = replace(done.comparison.leaderboard, rows=(row,))
    page = replace(done.comparison, path=tmp_path, leaderboard=board)._repr_html_()
    assert name not in page
    assert "<img" not in page


def test_a_dataset_is_taken_as_it_is() -> None:
    dataset = regraft.Dataset
    assert isinstance(toy(12), dataset)
    run = regraft.fit(toy(60), backbone="test_resnet", weights="random", resolution=32, out="one")
    assert run.scores.origin.data is None
    assert np.isfinite(run.scores.val.loss)
