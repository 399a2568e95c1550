"""The verbs that list what there is: techniques, sources, backbones and the cache."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from regraft.cli.arguments import Json
from regraft.cli.console import print_json, print_pairs, say
from regraft.cli.flags import Group, Only, add_verb
from regraft.errors import UserError
from regraft.options import CacheOptions, PlanOverrides
from regraft.system.timer import format_duration

app = typer.Typer()
backbones_app = typer.Typer(
    cls=Group, help="List backbones, or show where one can be cut.", invoke_without_command=True
)
cache_app = typer.Typer(
    cls=Group, help="List, measure or clear the cache of features.", no_args_is_help=True
)

_MB = 1e6

CacheDir = Annotated[CacheOptions, Only("cache_dir")]
Resolution = Annotated[PlanOverrides, Only("resolution")]


@add_verb(app)
def techniques(json: Json = False) -> None:
    """List the techniques."""
    from regraft.plans.techniques import DEFAULT_TECHNIQUES, TECHNIQUES, technique_summary

    rows = {name: technique_summary(name) for name in TECHNIQUES}
    if json:
        print_json({"techniques": rows, "default": DEFAULT_TECHNIQUES})
        return
    print_pairs(rows)
    say("\nYour own: a function (ModelInfo, DatasetInfo) -> Plan, given as module:function.")


@add_verb(app)
def sources(json: Json = False) -> None:
    """List what DATA can be."""
    from regraft.data.load import FORMS, SOURCES

    names = {name: about for name, (_, about) in SOURCES.items()}
    if json:
        print_json({"forms": FORMS, "names": names})
        return
    print_pairs(FORMS, "DATA can be")
    print_pairs(names, "\nor one of these names")


@backbones_app.callback()
def backbones(context: typer.Context) -> None:
    """List all backbones when no other verb is given."""
    if context.invoked_subcommand is None:
        list_backbones()


@add_verb(backbones_app, "list")
def list_backbones(
    pattern: Annotated[str, typer.Argument(help="A name with *, e.g. 'resnet*'.")] = "",
    json: Json = False,
) -> None:
    """List the backbones that match a pattern."""
    from regraft.models import backbone

    names = backbone.list_backbones(pattern)
    if not names:
        raise UserError(
            f"No backbone matches {pattern!r}. Expected a timm name, with * for any letters. "
            "`regraft backbones` lists all."
        )
    if json:
        print_json({"backbones": names})
    else:
        typer.echo("\n".join(names))


@add_verb(backbones_app, "show")
def show_backbone(
    name: Annotated[str, typer.Argument(help="A timm name.")],
    overrides: Resolution,
    every_block: Annotated[
        bool, typer.Option("--all", help="Every block and not only every stage.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the layers at which a backbone can be cut, with what each costs."""
    from regraft.cli.plan_tables import print_layers
    from regraft.models.backbone import load_backbone
    from regraft.models.costs import describe_layers

    backbone = load_backbone(name, "random", overrides.resolution)
    layers = [asdict(layer) for layer in describe_layers(backbone, fine=every_block)]
    values = {
        "backbone": name,
        "resolution": backbone.resolution,
        "input": asdict(backbone.rules),
        "places": layers,
    }
    if json:
        print_json(values)
    else:
        print_layers(values)


@add_verb(cache_app, "list")
def list_cache(cache: CacheDir, json: Json = False) -> None:
    """List the entries, the one used last first."""
    from regraft.features.store import list_entries

    entries = list_entries(cache.dir)
    if json:
        print_json({"entries": entries, "folder": str(cache.dir)})
    else:
        _print_entries(entries, cache.dir)


def _print_entries(entries: list[dict[str, Any]], folder: Path) -> None:
    for entry in entries:
        size = f"{entry['bytes'] / _MB:10,.1f} MB"
        age = f"{format_duration(entry['age']):>12} ago"
        typer.echo(f"{entry['name']}  {size}  {age}  {entry['shapes']}")
    total = sum(entry["bytes"] for entry in entries)
    typer.echo(f"{len(entries)} entries, {total / _MB:,.1f} MB in {folder}")


@add_verb(cache_app, "size")
def measure_cache(cache: CacheDir, json: Json = False) -> None:
    """Show how large the cache is, and how large it may become (REGRAFT_CACHE_LIMIT, in GB)."""
    from regraft.features.store import cache_limit, list_entries

    folder = cache.dir
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(entry["bytes"] for entry in list_entries(folder))
    limit = cache_limit(folder)
    if json:
        print_json({"folder": str(folder), "bytes": size, "bound": limit})
    else:
        typer.echo(f"{size / _MB:,.1f} MB of {limit / _MB:,.1f} MB allowed in {folder}")


@add_verb(cache_app, "clear")
def clear(cache: CacheDir) -> None:
    """Remove every entry."""
    from regraft.features.store import clear_cache

    typer.echo(f"{clear_cache(cache.dir) / _MB:,.1f} MB freed in {cache.dir}")
