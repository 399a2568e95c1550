"""The verbs. Each is one function with one call in it; heavy rooms are imported when a verb needs them."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from regraft.cli import embedding, evidence, recipes, serving, using
from regraft.cli.options import (
    Backbone,
    Cache,
    Compile,
    Data,
    Device,
    Json,
    Keep,
    Out,
    Overwrite,
    Precision,
    Quiet,
    Resolution,
    Resume,
    Seed,
    Set,
    SkipBad,
    SplitSeed,
    Track,
    TrainImages,
    ValImages,
    Weights,
    settings,
)
from regraft.errors import UserError, escape_control

_MISTAKEN = (
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
)  # paths, and not our bugs
_INTERRUPTED = 130  # how typer reports Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Which way should a pretrained network be carried over to my images, and was it worth it?",
    epilog="Start with:  regraft compare digits   or   regraft compare path/to/folder-of-class-folders",
)
backbones_app = typer.Typer(
    help="List backbones, or show where one can be cut.",
    invoke_without_command=True,
    rich_markup_mode="rich",
)
cache_app = typer.Typer(
    help="List, measure or clear what was computed once and kept.", no_args_is_help=True
)
app.add_typer(evidence.app)
app.add_typer(embedding.app)
app.add_typer(using.app)
app.add_typer(serving.app)
app.add_typer(backbones_app, name="backbones")
app.add_typer(cache_app, name="cache")
app.add_typer(recipes.app, name="recipes")


@app.command(epilog="Example:  regraft fit photos/ --technique fine-tune --set phases.0.epochs=10")
def fit(
    context: typer.Context,
    data: Data,
    technique: Annotated[
        str, typer.Option(help="A way of carrying over; `regraft techniques` lists them.")
    ] = "linear-probe",
    plan: Annotated[Path | None, typer.Option(help="A plan file instead of a technique.")] = None,
    backbone: Backbone = None,
    weights: Weights = None,
    resolution: Resolution = None,
    set: Set = None,
    seed: Seed = None,
    split_seed: SplitSeed = 0,
    train_images: TrainImages = None,
    val_images: ValImages = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    skip_bad: SkipBad = False,
    cache: Cache = None,
    device: Device = "auto",
    precision: Precision = None,
    keep: Keep = "auto",
    compiling: Compile = "auto",
    track: Track = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit one technique or plan and leave a run folder; the test part stays shut."""
    from regraft.cli.show import as_json, progress, run
    from regraft.workflow.named import fit_named
    from regraft.workflow.planning import Wish

    with progress(quiet) as reporter:
        done = fit_named(
            data,
            Wish(technique, plan, backbone, weights, resolution, seed, set or (), precision),
            out,
            **settings(context),
            reporter=reporter,
        )
    as_json({**done.scores, "path": str(done.path), "warnings": done.warnings}) if json else run(
        done.scores, str(done.path), done.warnings
    )


@app.command(
    epilog="Example:  regraft compare photos/ --techniques linear-probe,fine-tune --seeds 3"
)
def compare(
    context: typer.Context,
    data: Data,
    techniques: Annotated[
        str | None, typer.Option(help="Comma-separated; by default six that cover the ground.")
    ] = None,
    backbones: Annotated[
        str, typer.Option(help="Comma-separated timm names.")
    ] = "tf_efficientnet_lite0",
    from_probe: Annotated[
        Path | None,
        typer.Option(
            help="Compare the plans of a folder of `regraft probe`; with --techniques, those too."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat every row with this many seeds.")] = 1,
    weights: Weights = None,
    resolution: Resolution = None,
    set: Set = None,
    split_seed: SplitSeed = 0,
    train_images: TrainImages = None,
    val_images: ValImages = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    skip_bad: SkipBad = False,
    cache: Cache = None,
    device: Device = "auto",
    precision: Precision = None,
    keep: Keep = "auto",
    compiling: Compile = "auto",
    track: Track = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Carry backbones over in several ways and say which way was best; the test part is opened once, at the end."""
    from regraft.cli.show import as_json, leaderboard, progress
    from regraft.workflow.named import compare_named
    from regraft.workflow.planning import Wish

    ways, names = (
        _listed(techniques, "--techniques") if techniques is not None else None,
        _listed(backbones, "--backbones"),
    )
    with progress(quiet) as reporter:
        wish = Wish(weights=weights, resolution=resolution, changes=set or (), precision=precision)
        done = compare_named(
            data, ways, names, seeds, wish, out, from_probe, **settings(context), reporter=reporter
        )
    as_json(done.board) if json else leaderboard(done.board, str(done.path))


@app.command(epilog="Example:  regraft plan photos/ --technique fine-tune-top --save plan.toml")
def plan(
    context: typer.Context,
    data: Data,
    technique: Annotated[
        str, typer.Option(help="A way of carrying over; `regraft techniques` lists them.")
    ] = "linear-probe",
    plan: Annotated[Path | None, typer.Option(help="A plan file instead of a technique.")] = None,
    backbone: Backbone = None,
    weights: Weights = None,
    resolution: Resolution = None,
    set: Set = None,
    seed: Seed = None,
    split_seed: SplitSeed = 0,
    train_images: TrainImages = None,
    val_images: ValImages = None,
    save: Annotated[Path | None, typer.Option(help="Write the plan to this TOML file.")] = None,
    cache: Cache = None,
    device: Device = "auto",
    precision: Precision = None,
    keep: Keep = "auto",
    json: Json = False,
) -> None:
    """Say what would be frozen, computed once and trained, and for about how long; runs nothing."""
    from regraft.cli.show import as_json, explanation
    from regraft.workflow.named import explain_named
    from regraft.workflow.planning import Wish

    told = explain_named(
        data,
        Wish(technique, plan, backbone, weights, resolution, seed, set or (), precision),
        save,
        **settings(context),
    )
    as_json(told) if json else explanation(told)


@app.command(epilog="Example:  regraft probe photos/ --resolutions 64,96,128 --budget 5m")
def probe(
    context: typer.Context,
    data: Data,
    backbones: Annotated[
        str, typer.Option(help="Comma-separated timm names.")
    ] = "tf_efficientnet_lite0",
    resolutions: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated sides in pixels; by default four around what suits the images."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Time for all of it, such as 90s or 5m: few images first, more for what promises most."
        ),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folders of finished runs to check the scores against. Repeatable. [default: runs, compare]"
        ),
    ] = None,
    weights: Weights = None,
    split_seed: SplitSeed = 0,
    train_images: TrainImages = None,
    val_images: ValImages = None,
    out: Out = None,
    overwrite: Overwrite = False,
    skip_bad: SkipBad = False,
    cache: Cache = None,
    device: Device = "auto",
    precision: Precision = None,
    compiling: Compile = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say where to cut, at what resolution, which backbone: every place judged by its frozen features, before anything is trained."""
    from regraft.cli import show
    from regraft.cli.show import as_json, progress
    from regraft.workflow.named import probe_named
    from regraft.workflow.planning import Wish

    sides = _sides(resolutions) if resolutions is not None else []
    with progress(quiet) as reporter:
        done = probe_named(
            data,
            _listed(backbones, "--backbones"),
            sides,
            budget,
            runs,
            Wish(weights=weights, precision=precision),
            out,
            **settings(context),
            reporter=reporter,
        )
    as_json({**done.told, "path": str(done.path)}) if json else show.probe(
        done.told, str(done.path)
    )


@app.command()
def techniques(json: Json = False) -> None:
    """List the ways of carrying a network over."""
    from regraft.cli.show import as_json, pairs
    from regraft.plans.techniques import DEFAULT_TECHNIQUES, TECHNIQUES, technique_summary

    rows = {name: technique_summary(name) for name in TECHNIQUES}
    if json:
        as_json({"techniques": rows, "default": DEFAULT_TECHNIQUES})
    else:
        pairs(rows)
        typer.echo(
            "\nYour own: a function (ModelFacts, DataFacts) -> Plan, given as module:function."
        )


@app.command()
def sources(json: Json = False) -> None:
    """List what DATA can be."""
    from regraft.cli.show import as_json, pairs
    from regraft.data.load import FORMS, SOURCES

    names = {name: about for name, (_, about) in SOURCES.items()}
    if json:
        as_json({"forms": FORMS, "names": names})
    else:
        pairs(FORMS, "DATA can be")
        pairs(names, "\nor one of these names")


@backbones_app.callback()
def backbones(context: typer.Context) -> None:
    """List all backbones when no other verb is given."""
    if context.invoked_subcommand is None:
        backbones_list("")


@backbones_app.command("list")
def backbones_list(
    pattern: Annotated[str, typer.Argument(help="A name with *, e.g. 'resnet*'.")] = "",
    json: Json = False,
) -> None:
    """List the backbones that match a pattern."""
    from regraft.cli.show import as_json
    from regraft.models.backbone import list_backbones

    found = list_backbones(pattern)
    if not found:
        raise UserError(
            f"No backbone matches {pattern!r}. Expected a timm name, with * for any letters. `regraft backbones` lists all."
        )
    as_json({"backbones": found}) if json else typer.echo("\n".join(found))


@backbones_app.command("show")
def backbones_show(
    name: Annotated[str, typer.Argument(help="A timm name.")],
    resolution: Resolution = None,
    all_places: Annotated[
        bool, typer.Option("--all", help="Every block and not only every stage.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the ladder of places at which a backbone can be cut, with what each costs."""
    from dataclasses import asdict

    from regraft.cli.show import as_json, ladder
    from regraft.models.backbone import load_backbone
    from regraft.models.costs import describe_layers

    source = load_backbone(name, "random", resolution)
    rungs = [asdict(place) for place in describe_layers(source, fine=all_places)]
    told = {
        "backbone": name,
        "resolution": source.resolution,
        "input": asdict(source.rules),
        "places": rungs,
    }
    as_json(told) if json else ladder(
        name,
        source.resolution,
        f"mean {source.rules.mean}, std {source.rules.std}, {source.rules.interpolation}",
        rungs,
    )


@cache_app.command("list")
def cache_list(cache: Cache = None, json: Json = False) -> None:
    """List the entries, the one used last first."""
    from regraft.cli.show import as_json
    from regraft.features.store import list_entries
    from regraft.options import default_cache_dir

    entries = list_entries(default_cache_dir(cache))
    if json:
        as_json({"entries": entries, "folder": str(default_cache_dir(cache))})
        return
    for entry in entries:
        typer.echo(
            f"{entry['name']}  {entry['bytes'] / 1e6:10,.1f} MB  {entry['age'] / 3600:8,.1f} h ago  {entry['shapes']}"
        )
    typer.echo(
        f"{len(entries)} entries, {sum(entry['bytes'] for entry in entries) / 1e6:,.1f} MB in {default_cache_dir(cache)}"
    )


@cache_app.command("size")
def cache_size(cache: Cache = None, json: Json = False) -> None:
    """Say how large the cache is, and how large it may become (REGRAFT_CACHE_LIMIT, in GB)."""
    from regraft.cli.show import as_json
    from regraft.features.store import cache_limit, list_entries
    from regraft.options import default_cache_dir

    folder = default_cache_dir(cache)
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "folder": str(folder),
        "bytes": sum(entry["bytes"] for entry in list_entries(folder)),
        "bound": cache_limit(folder),
    }
    as_json(told) if json else typer.echo(
        f"{told['bytes'] / 1e6:,.1f} MB of {told['bound'] / 1e6:,.1f} MB allowed in {folder}"
    )


@cache_app.command("clear")
def cache_clear(cache: Cache = None) -> None:
    """Remove every entry."""
    from regraft.features.store import clear_cache
    from regraft.options import default_cache_dir

    typer.echo(
        f"{clear_cache(default_cache_dir(cache)) / 1e6:,.1f} MB freed in {default_cache_dir(cache)}"
    )


def main() -> None:
    """Run the command line: 0 done, 2 the user's mistake, 1 our bug."""
    before = signal.signal(signal.SIGTERM, _terminated)  # `serve` puts its own in its place
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        sys.stderr.write(f"regraft: {escape_control(str(error))}\n")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except BrokenPipeError:
        code = 0
    except SystemExit as stopped:  # click's answer to a reader that has gone, such as `| head`
        code = 0 if isinstance(stopped.__context__, BrokenPipeError) else stopped.code
    except OSError as error:
        if error.errno not in _MISTAKEN or error.filename is None:
            raise
        sys.stderr.write(
            f"regraft: {escape_control(str(error.filename))} cannot be used ({error.strerror}). Expected a path that can be. Check its name and permissions.\n"
        )
        code = 2
    except Exception as error:
        if not callable(getattr(error, "show", None)):
            raise
        error.show()  # type: ignore[attr-defined]  # click's word for a wrong flag; typer brings its own click since 0.20 or so
        code = 2
    finally:
        signal.signal(signal.SIGTERM, before)
    if code == _INTERRUPTED:
        sys.stderr.write(
            "\nregraft: Stopped. What was finished is kept; fit, compare and predict --out go on from there with the same command and --resume.\n"
        )
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _terminated(*_: object) -> NoReturn:
    """End as Ctrl-C does: what is finished is kept, and how to go on is said."""
    raise KeyboardInterrupt


def _listed(words: str, flag: str) -> list[str]:
    found = [word.strip() for word in words.split(",") if word.strip()]
    if not found:
        raise UserError(
            f"{flag} {words!r} names nothing. Expected names separated by commas. Leave it out to take what is usual."
        )
    return found


def _sides(words: str) -> list[int]:
    try:
        return [int(word) for word in _listed(words, "--resolutions")]
    except ValueError:
        raise UserError(
            f"--resolutions {words} was given. Expected sides in pixels, separated by commas. Write for example 64,96,128."
        ) from None
