"""The verbs as Python functions: a few named arguments each, and typed keywords for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from regraft.commands.keywords import (
    CheckKeywords,
    CompareKeywords,
    EmbedKeywords,
    EvaluateKeywords,
    ExportKeywords,
    FitKeywords,
    PlanKeywords,
    PredictKeywords,
    ProbeKeywords,
    ReportKeywords,
    pick,
    takes,
    to_options,
)

if TYPE_CHECKING:
    from typing import Unpack

    from regraft.commands.check import Check
    from regraft.commands.compare import Comparison
    from regraft.commands.embed import Embedding
    from regraft.commands.evaluate import Evaluation
    from regraft.commands.plan import PlanForecast
    from regraft.commands.predict import PredictionSummary
    from regraft.commands.probe import Probe
    from regraft.commands.report import Report
    from regraft.data.dataset import Dataset
    from regraft.exporting.export import ExportReport
    from regraft.inference.classifier import Classifier, Prediction
    from regraft.runs.folder import Run


@takes(FitKeywords)
def fit(
    data: str | Path | Dataset,
    technique: str = "linear-probe",
    backbone: str | None = None,
    **options: Unpack[FitKeywords],
) -> Run:
    """Return the finished run of one technique, or of a plan; the test part stays held out.

    Args:
        data: A known name, a folder, an archive, a CSV, Parquet or .npz file, or a dataset; see
            `regraft sources`.
        technique: A name that `regraft techniques` lists, or `module:function`; ignored where a
            plan is given.
        backbone: Any timm name; EfficientNet-Lite0, whose weights are installed, when None.
        **options: See `FitKeywords`. Without `out` the run goes to `runs/<data>-<technique>`,
            with the next free number.

    Raises:
        UserError: For a mistake of the caller, in one sentence.
    """
    from regraft.commands.fit import fit as fit_run

    overrides, chosen = to_options({**options, "backbone": backbone})
    return fit_run(data, technique, overrides, chosen)


@takes(CompareKeywords)
def compare(
    data: str | Path | Dataset,
    techniques: Sequence[str] | None = None,
    backbones: Sequence[str] | None = None,
    seeds: int = 1,
    from_probe: str | Path | None = None,
    **options: Unpack[CompareKeywords],
) -> Comparison:
    """Return the comparison of several ways on the same images, ranked on validation.

    The test part is opened once, at the end, for all rows. A row that fails is reported with its
    reason, and the others go on.

    Args:
        data: The images, as for `fit`.
        techniques: Names of techniques; the usual ones when None, or none with `from_probe`.
        backbones: timm names; EfficientNet-Lite0 when None.
        seeds: Rows for the seeds 0 … seeds - 1; the split stays the same.
        from_probe: Folder of a probe, whose recommended plans are rows too.
        **options: See `CompareKeywords`; each holds for every row.

    Raises:
        UserError: When names are unknown, images cannot be decoded, or the folder is taken.
    """
    from regraft.commands.compare import compare as compare_all
    from regraft.commands.options import Ways

    usual = Ways(seeds=seeds)
    if techniques is None:
        techniques = usual.techniques if from_probe is None else ()
    ways = Ways(techniques, usual.backbones if backbones is None else backbones, seeds)
    overrides, chosen = to_options(options)
    return compare_all(data, ways, overrides, chosen, from_probe)


@takes(ProbeKeywords)
def probe(
    data: str | Path | Dataset,
    backbones: Sequence[str] | None = None,
    resolutions: Sequence[int] = (),
    budget: str | None = None,
    runs: Sequence[str | Path] | None = None,
    **options: Unpack[ProbeKeywords],
) -> Probe:
    """Return where to cut, at what resolution and in which backbone, before anything is trained.

    Every layer is judged by its frozen features; `plans` of the result has a plan for each
    budget, which `fit` takes.

    Args:
        data: The images, as for `fit`; the test part stays held out.
        backbones: timm names; EfficientNet-Lite0 when None.
        resolutions: Sides in pixels; those around what suits the images when empty.
        budget: Time for all of it, such as "90s" or "5m"; None takes every image everywhere.
        runs: Folders of finished runs to compare the scores with; `runs` and `compare` in the
            current folder when None.
        **options: See `ProbeKeywords`.

    Raises:
        UserError: When names are unknown, the folder is taken, nothing can be probed, or the
            budget is too short for one candidate.
    """
    from regraft.commands.options import ProbeOptions
    from regraft.commands.probe import probe as probe_layers

    folders = None if runs is None else [Path(run) for run in runs]
    names = ProbeOptions().backbones if backbones is None else backbones
    overrides, chosen = to_options(options)
    return probe_layers(data, ProbeOptions(names, resolutions, budget, folders), overrides, chosen)


@takes(PlanKeywords)
def plan(
    data: str | Path | Dataset,
    technique: str = "linear-probe",
    backbone: str | None = None,
    save: str | Path | None = None,
    **options: Unpack[PlanKeywords],
) -> PlanForecast:
    """Return what a technique or a plan would do with these images, and about how long it takes.

    Args:
        data: The images, as for `fit`; nothing is trained.
        technique: As for `fit`.
        backbone: As for `fit`.
        save: A TOML file to write the plan to.
        **options: See `PlanKeywords`.

    Raises:
        UserError: When the file exists already, or names, plan and images do not go together.
    """
    from regraft.commands.plan import plan as forecast

    overrides, chosen = to_options({**options, "backbone": backbone})
    return forecast(data, technique, overrides, chosen, save)


@takes(CheckKeywords)
def check(
    data: str | Path | Dataset,
    backbone: str | None = None,
    **options: Unpack[CheckKeywords],
) -> Check:
    """Return duplicates, doubtful labels, imbalance and odd files of labelled images.

    Args:
        data: The images, as for `fit`; those of every part are looked at.
        backbone: The network whose features tell what is alike; EfficientNet-Lite0 when None.
        **options: See `CheckKeywords`; `out` is an HTML page to write.

    Raises:
        UserError: When the page exists already, or weights or images cannot be had.
    """
    from regraft.commands.check import check as check_images

    overrides, chosen = to_options({**options, "backbone": backbone})
    return check_images(data, overrides, chosen)


@takes(EvaluateKeywords)
def evaluate(
    run: str | Path | Run,
    data: str | Path | None = None,
    split: str = "val",
    **options: Unpack[EvaluateKeywords],
) -> Evaluation:
    """Return the scores of a run on one part, or on other images.

    Args:
        run: A run, or its folder.
        data: The images; for "test" those that the run remembers, when None.
        split: "val" shows the scores of `fit`; "test" opens the held-out test part, which is
            recorded; "all" scores every image of `data`.
        **options: See `EvaluateKeywords`.

    Raises:
        UserError: When the run or the part does not exist, or the images are others than the run's.
    """
    from regraft.commands.evaluate import evaluate as evaluate_run

    _, chosen = to_options(options)
    return evaluate_run(run, data, split, chosen)


@takes(ReportKeywords)
def report(
    runs: str | Path | Run | Comparison | Sequence[str | Path | Run | Comparison],
    data: str | Path | None = None,
    format: str = "html",
    **options: Unpack[ReportKeywords],
) -> Report:
    """Return where a report of finished runs was written, and what it says.

    Args:
        runs: Runs and comparisons, or their folders; one or several.
        data: The images; by default those that the runs remember.
        format: "html" or "md".
        **options: See `ReportKeywords`; `out` is `report.html` or `report.md` in the first folder
            by default.

    Raises:
        UserError: When a folder holds no finished run, runs do not belong together, or the file
            exists and is not to be overwritten.
    """
    from regraft.commands.report import report as write_report

    several = runs if isinstance(runs, Sequence) and not isinstance(runs, str) else [runs]
    _, chosen = to_options(options)
    return write_report([_to_path(item) for item in several], data, format, chosen)


@overload
def predict(
    run: str | Path | Run,
    images: str | Path | Sequence[str | Path],
    out: None = None,
    **options: Unpack[PredictKeywords],
) -> list[Prediction]: ...


@overload
def predict(
    run: str | Path | Run,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    **options: Unpack[PredictKeywords],
) -> PredictionSummary: ...


@takes(PredictKeywords)
def predict(
    run: str | Path | Run,
    images: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    **options: Unpack[PredictKeywords],
) -> list[Prediction] | PredictionSummary:
    """Return a prediction for each image; or write them to a file, and return what was written.

    Args:
        run: A run, or its folder.
        images: Files, folders, archives or tables of images; one or several.
        out: A CSV, JSON-lines or Parquet file for as many images as there are; it is written as
            they come, and `resume` goes on with it.
        **options: See `PredictKeywords`.

    Raises:
        UserError: For a run, a path or a number that cannot be used, and where there is no image.
    """
    from regraft.commands import predict as command
    from regraft.options import Runtime

    paths = [images] if isinstance(images, str | Path) else list(images)
    values = {**options, "runtime": pick(Runtime, options)}
    asked = pick(command.PredictOptions, values)
    if out is None:
        return list(command.predict(run, paths, asked))
    target = pick(command.PredictionTarget, {**options, "out": Path(out)})
    return command.predict_to(run, paths, target, asked)


@takes(ExportKeywords)
def export(
    run: str | Path | Run,
    to: str,
    out: str | Path | None = None,
    int8: bool = False,
    data: str | Path | None = None,
    max_drop: float = 3.0,
    **options: Unpack[ExportKeywords],
) -> ExportReport:
    """Write a run for other programs, compare its answers with the run's, and return the result.

    Args:
        run: A run, or its folder.
        to: "onnx", "torchscript", "safetensors", "timm" or "hub-folder".
        out: A file or folder; `exports/` under the run's name when None.
        int8: ONNX in 8-bit integers; what that costs is measured on validation images.
        data: The run's images, where the run does not know where they are.
        max_drop: Percentage points of accuracy that int8 may cost; if it costs more, nothing is
            written.
        **options: See `ExportKeywords`.

    Raises:
        UserError: When the run cannot be exported so, or the export answers differently from the
            run; it is removed then.
    """
    from regraft.commands.export import export as export_run
    from regraft.commands.options import ExportRequest

    _, chosen = to_options(options)
    return export_run(run, ExportRequest(to, out, int8, data, max_drop), chosen)


@takes(EmbedKeywords)
def embed(
    data: str | Path | Dataset,
    backbone: str | None = None,
    resolution: int | None = None,
    layers: str | Sequence[str] = "end",
    out: str | Path | None = None,
    **options: Unpack[EmbedKeywords],
) -> Embedding:
    """Return the features of all images, rows in the order of their keys; nothing is trained.

    They come through the cache that `fit`, `compare` and `probe` share. The images of the test
    part are among them.

    Args:
        data: The images, as for `fit`.
        backbone: Any timm name; EfficientNet-Lite0 when None.
        resolution: Side in pixels; what suits the images when None.
        layers: Where features are taken: a stage or module, "end", or several of them, pooled and
            concatenated.
        out: A Parquet file to write as well.
        **options: See `EmbedKeywords`.

    Raises:
        UserError: For unknown names, an image that cannot be decoded, or a file that exists.
    """
    from regraft.commands.embed import embed as embed_images

    asked = {**options, "backbone": backbone, "resolution": resolution, "out": out}
    overrides, chosen = to_options(asked)
    return embed_images(data, layers, overrides, chosen)


def load(run: str | Path | Run, device: str = "auto") -> Classifier:
    """Return a finished run as a classifier with `predict` and `predict_proba`.

    Args:
        run: A run, or its folder; the classifier's `run` is the run.
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: When there is no finished run in the folder.
    """
    from regraft.inference.classifier import Classifier
    from regraft.runs.folder import Run, load_run

    return Classifier(run if isinstance(run, Run) else load_run(run), device)


def _to_path(item: str | Path | Run | Comparison) -> Path:
    return Path(item) if isinstance(item, str | Path) else item.path
