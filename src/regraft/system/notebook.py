"""HTML that a notebook shows for a result: a sentence, a table and a picture."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

_BAR = 220  # pixels of a chart that stand for an accuracy of 1
_ROW = 22
_INDENT = 60


def render_result(
    title: str, sentence: str, rows: Sequence[Sequence[str]], picture: str = ""
) -> str:
    """Return a result as HTML; all text is escaped.

    Args:
        title: What it is, such as "Run".
        sentence: What it says.
        rows: Cells of a table; the first row is its head.
        picture: HTML of a picture, see `inline_png` and `draw_intervals`.
    """
    head, *body = rows
    lines = [_table_row(head, "th"), *(_table_row(row, "td") for row in body)]
    return (
        f"<div><p><b>{escape(title)}</b> {escape(sentence)}</p>"
        f"<table>{''.join(lines)}</table>{picture}</div>"
    )


def inline_png(path: Path, width: int = 560) -> str:
    """Return a PNG file as an image that needs no file; nothing where it cannot be read."""
    try:
        content = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError:
        return ""
    name = escape(path.stem)
    return f'<img alt="{name}" width="{width}" src="data:image/png;base64,{content}">'


def draw_intervals(rows: Iterable[tuple[str, float, tuple[float, float]]]) -> str:
    """Return accuracies with their 95 % intervals as an SVG.

    Args:
        rows: Name, accuracy and interval, each number 0 … 1.
    """
    marks = []
    for number, (name, accuracy, (low, high)) in enumerate(rows):
        y = _ROW * number + _ROW // 2
        left = _INDENT + low * _BAR
        right = _INDENT + high * _BAR
        marks.append(
            f'<text x="0" y="{y + 4}" font-size="12" fill="currentColor">{escape(name)}</text>'
            f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}" stroke="#4477aa" '
            f'stroke-width="3"/>'
            f'<circle cx="{_INDENT + accuracy * _BAR:.1f}" cy="{y}" r="5" fill="#4477aa"/>'
        )
    width = _INDENT + _BAR + 10
    size = f'width="{width}" height="{_ROW * len(marks)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(marks)}</svg>'


def _table_row(cells: Sequence[str], tag: str) -> str:
    escaped = [f"<{tag}>{escape(cell)}</{tag}>" for cell in cells]
    return f"<tr>{''.join(escaped)}</tr>"
