"""The report as one HTML page that needs nothing else, or as Markdown for a pull request."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.reporting.charts import draw_charts
from regraft.reporting.plots import get_colour

_THUMBNAIL_SIDE = 112  # pixels
_MAX_CONFUSIONS = 10
_HEAT_COLOUR = (255, 90, 0)
_HEAT_OPACITY = 0.65


@dataclass(frozen=True)
class Thumbnail:
    """An image to show as a thumbnail.

    Args:
        image: `(h, w, 3)` uint8.
        lines: The caption.
        heat: Class-activation map of the image's size, 0 … 1.
        right: Whether the prediction is right; colours the first line of the caption.
    """

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
    """The parts of a report that need the images.

    Args:
        galleries: Of the selected run.
        check: What `regraft check` found.
        check_galleries: Its images.
        leaks: A sentence on images that occur in several parts.
    """

    galleries: Sequence[Gallery] = field(default_factory=tuple)
    check: dict[str, Any] | None = None
    check_galleries: Sequence[Gallery] = field(default_factory=tuple)
    leaks: str = ""


def render_html(evidence: Mapping[str, Any], extra: PageExtras, version: str) -> str:
    """Return the page of a report, UTF-8 text that loads nothing from any address.

    Args:
        evidence: As `evidence.gathered` returns it.
        extra: Galleries and data checks.
        version: Of regraft.
    """
    runs = evidence["runs"]
    selected = evidence["board"]["selected"]
    return _render(
        "report.html",
        evidence=evidence,
        extra=extra,
        charts=draw_charts(evidence),
        colours={name: get_colour(number) for number, name in enumerate(runs)},
        selected=selected,
        confusions=_find_confusions(runs[selected]["measures"]),
        version=version,
        pairs=_get_pairs_by_name(evidence),
    )


def render_check_html(check: Mapping[str, Any], galleries: Sequence[Gallery], version: str) -> str:
    """Return the page of a check alone."""
    return _render("check.html", check=check, galleries=galleries, version=version)


def render_markdown(evidence: Mapping[str, Any]) -> str:
    """Return the report as Markdown: verdict, leaderboard, and the commands to run it again."""
    return _render(
        "report.md",
        evidence=evidence,
        selected=evidence["board"]["selected"],
        pairs=_get_pairs_by_name(evidence),
    )


def _get_pairs_by_name(evidence: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {pair["name"]: pair for pair in evidence["pairs"]}


def _render(template: str, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("regraft.reporting"),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "thumbnail": _to_thumbnail_url,
        "percent": _format_percent,
        "short": _format_count,
    }
    return str(environment.get_template(f"{template}.j2").render(**values))


def _find_confusions(measures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the most frequent pairs of true and predicted class, at most `_MAX_CONFUSIONS`."""
    names = [row["name"] for row in measures["per_class"]]
    counts = np.array(measures["confusion"])
    np.fill_diagonal(counts, 0)
    confusions = []
    for place in np.argsort(-counts, axis=None, kind="stable")[:_MAX_CONFUSIONS]:
        row, column = divmod(int(place), len(names))
        count = int(counts[row, column])
        if count:
            confusions.append({"true": names[row], "predicted": names[column], "n": count})
    return confusions


def _to_thumbnail_url(shot: Thumbnail) -> str:
    """Return a small JPEG of an image as a data address, with its heat map laid over it."""
    from PIL import Image

    picture = Image.fromarray(shot.image)
    factor = _THUMBNAIL_SIDE / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    resampling = Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS
    picture = picture.resize(size, resampling)
    if shot.heat is not None:
        resized = Image.fromarray(shot.heat).resize(size, Image.Resampling.BILINEAR)
        picture = _overlay_heat(picture, np.asarray(resized))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _overlay_heat(picture: Any, heat: NDArray[np.float32]) -> Any:
    """Return a picture in grey with a heat map `(h, w)`, 0 … 1, laid over it in colour."""
    from PIL import Image

    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    colour = np.array(_HEAT_COLOUR, dtype=np.float32)
    heat = heat[..., None]
    mixed = grey * (1 - _HEAT_OPACITY * heat) + colour * _HEAT_OPACITY * heat
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _format_percent(share: float) -> str:
    return f"{share:.1%}"


def _format_count(count: float) -> str:
    if count >= 1e6:
        return f"{count / 1e6:.2f} M"
    if count >= 1e3:
        return f"{count / 1e3:.1f} k"
    return f"{count:.0f}"
