"""The report as one HTML page that needs nothing else, or as Markdown for a pull request."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.reporting.charts import draw_charts, series_colour

_SIDE = 112  # pixels of a thumbnail


@dataclass(frozen=True)
class Thumbnail:
    """An image to show, with what is said under it; `heat` is where the network looked, 0 … 1, of the image's size."""

    image: NDArray[np.uint8]
    lines: tuple[str, ...]
    heat: NDArray[np.float32] | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Gallery:
    """Some images under one heading; `missing` says why there are none."""

    title: str
    about: str
    shots: Sequence[Thumbnail] = ()
    missing: str = ""


@dataclass(frozen=True)
class PageExtras:
    """What only those can add who have the images: galleries, and what `regraft check` found."""

    galleries: Sequence[Gallery] = field(default_factory=tuple)
    check: dict[str, Any] | None = None
    check_galleries: Sequence[Gallery] = field(default_factory=tuple)
    leaks: str = ""


def render_html(told: dict[str, Any], extra: PageExtras, version: str) -> str:
    """Return the page of a report, UTF-8 text without a single outside address that would be loaded.

    Args:
        told: As `evidence.gathered` has it.
        extra: Galleries and data checks.
        version: Of regraft.
    """
    selected = told["board"]["selected"]
    drawn = draw_charts(told["runs"], selected)
    colours = {name: series_colour(number) for number, name in enumerate(told["runs"])}
    confused = _confused(told["runs"][selected]["measures"])
    pairs = {pair["name"]: pair for pair in told["pairs"]}
    return _rendered(
        "report.html",
        told=told,
        extra=extra,
        charts=drawn,
        colours=colours,
        selected=selected,
        confused=confused,
        version=version,
        pairs=pairs,
    )


def render_check_html(told: dict[str, Any], galleries: Sequence[Gallery], version: str) -> str:
    """Return the page of a check alone."""
    return _rendered(
        "check.html",
        check=told,
        extra=PageExtras(check=told, check_galleries=galleries),
        version=version,
    )


def render_markdown(told: dict[str, Any]) -> str:
    """Return the report as Markdown: verdict, leaderboard, pairs, how to repeat it."""
    return _rendered(
        "report.md",
        told=told,
        selected=told["board"]["selected"],
        pairs={p["name"]: p for p in told["pairs"]},
    )


def _rendered(name: str, **values: Any) -> str:
    import jinja2

    world = jinja2.Environment(
        loader=jinja2.PackageLoader("regraft.reporting"),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    world.filters |= {
        "thumbnail": _thumbnail,
        "percent": lambda share: f"{share:.1%}",
        "short": _short,
    }
    return str(world.get_template(f"{name}.j2").render(**values))


def _confused(measures: dict[str, Any], most: int = 10) -> list[dict[str, Any]]:
    """Return which classes are taken for which others most often."""
    names, table = [row["name"] for row in measures["per_class"]], np.array(measures["confusion"])
    np.fill_diagonal(table, 0)
    order = np.argsort(-table, axis=None, kind="stable")[:most]
    places = [divmod(int(place), len(names)) for place in order]
    return [
        {"true": names[row], "said": names[column], "n": int(table[row, column])}
        for row, column in places
        if table[row, column]
    ]


def _thumbnail(shot: Thumbnail) -> str:
    """Return a small JPEG of a shot as a data address, with the heat laid over it where there is some."""
    from PIL import Image

    picture = Image.fromarray(shot.image)
    factor = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture = picture.resize(
        size, Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS
    )
    if shot.heat is not None:
        heat = np.asarray(Image.fromarray(shot.heat).resize(size, Image.Resampling.BILINEAR))[
            ..., None
        ]
        grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
        hot = np.array([255, 90, 0], dtype=np.float32)
        picture = Image.fromarray(
            (grey * (1 - 0.65 * heat) + hot * 0.65 * heat).clip(0, 255).astype(np.uint8)
        )
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _short(count: float) -> str:
    return (
        f"{count / 1e6:.2f} M"
        if count >= 1e6
        else f"{count / 1e3:.1f} k"
        if count >= 1e3
        else f"{count:.0f}"
    )
