"""The web page: an image dropped, photographed or pasted, its classes, what the network looked at, and training images like it.

Refuses everything from outside: fonts are the system's, and a content policy keeps the browser from asking anybody but this server. Loads Gradio.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio
import matplotlib
import numpy as np
from fastapi import FastAPI
from PIL import Image

from regraft.inference.cam import activation_maps
from regraft.serving.app import Pixels, Service
from regraft.serving.limits import Refused

_SIDE = 448  # pixels of what is shown
_TOP = 5
_SOURCES = ("upload", "webcam", "clipboard")
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; font-src 'self' data:; connect-src 'self' blob: data:; worker-src 'self' blob:; frame-ancestors 'self'"
)
_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
_MONO = ["ui-monospace", "monospace"]


def mount_page(app: FastAPI, service: Service, scratch: Path) -> Any:
    """Return the application with the page at `/`; `scratch` holds the examples, and what people upload for some minutes."""
    blocks = _blocks(service, scratch)
    blocks.queue(max_size=service.limits.requests)
    theme = gradio.themes.Default(font=_FONTS, font_mono=_MONO)
    options = {
        "theme": theme,
        "footer_links": [],
        "max_file_size": service.limits.body,
        "allowed_paths": [str(scratch)],
    }
    made = gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        ssr_mode=False,
        show_error=True,
        run_history=False,
        mcp_server=False,
        **options,
    )
    return _Policed(made)


class _Policed:
    """An ASGI application whose answers tell the browser to ask nobody else for anything."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def policed(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        await self.app(scope, receive, policed)


def _blocks(service: Service, scratch: Path) -> Any:
    """Return the page; nothing but what lies in `scratch` is shown or taken in."""
    examples = _written(service.gallery.examples, scratch / "examples")
    run = service.classifier.run
    val = run.scores["val"]
    about = (
        f"# {_literal(run.path.name)}\n{_literal(run.plan.backbone)}, carried over by {_literal(run.plan.technique)} "
        f"to {len(run.classes):,} classes; right on {val['accuracy']:.1%} of "
        f"{val['n']:,} validation images (95 % interval {val['ci95'][0]:.1%} to {val['ci95'][1]:.1%}). Images stay on the machine that serves this page."
    )
    with gradio.Blocks(
        title=f"regraft: {run.path.name}", analytics_enabled=False, delete_cache=(600, 600)
    ) as blocks:
        gradio.Markdown(about)
        with gradio.Row():
            with gradio.Column():
                given = gradio.Image(
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "webcam", "clipboard"],
                    label="An image",
                    height=_SIDE,
                    elem_id="given",
                )
                given.preprocess = _path(
                    scratch
                )  # Gradio would decode it first, without limits, and fail in words of its own
                if examples:
                    gradio.Examples(
                        [[one] for one in examples],
                        [given],
                        label="Validation images to try",
                        cache_examples=False,
                    )
            with gradio.Column():
                classes = gradio.Label(num_top_classes=_TOP, label="Classes", elem_id="classes")
                looked = gradio.Image(
                    visible=False,
                    label="What spoke for the first class",
                    interactive=False,
                    elem_id="map",
                    buttons=["fullscreen"],
                )
                near = gradio.Gallery(
                    visible=False,
                    label="Training images most like it, by cosine",
                    columns=3,
                    interactive=False,
                    elem_id="similar",
                    buttons=[],
                )
                said = gradio.Markdown(service.gallery.note, elem_id="said")
        for block in blocks.blocks.values():
            if hasattr(block, "async_move_resource_to_block_cache"):
                block.async_move_resource_to_block_cache = _uploaded(
                    block.async_move_resource_to_block_cache, scratch
                )
        given.change(
            _shown(service),
            given,
            [classes, looked, near, said],
            api_visibility="private",
            concurrency_limit=8,
            show_progress="minimal",
        )
    return blocks


def _literal(name: str) -> str:
    """Return a name that Markdown and HTML show as it is."""
    return re.sub(r"[^\w\s.-]", lambda found: f"&#{ord(found[0])};", " ".join(name.split()))


def _path(scratch: Path) -> Callable[[Any], str | None]:
    """Return the function from what Gradio says was uploaded to where it lies, in `scratch` and nowhere else."""
    return lambda sent: None if sent is None else _inside(sent.path, scratch)


def _uploaded(move: Callable[..., Any], scratch: Path) -> Callable[..., Any]:
    """Return the function that takes a file over, for files in `scratch` only: Gradio, mounted, would take any file of the machine, and fetch addresses."""

    async def moved(sent: Any, **words: Any) -> Any:
        return await move(None if sent is None else _inside(sent, scratch), **words)

    return moved


def _inside(path: Any, scratch: Path) -> str:
    """Return the path if it lies in `scratch`; raises Gradio's error otherwise."""
    if (
        path is None
        or "://" in str(path)
        or not Path(str(path)).resolve().is_relative_to(scratch.resolve())
    ):
        raise gradio.Error(
            "Something else than an upload was sent. Expected an image file: nothing else is read here, and nothing fetched from elsewhere."
        )
    return str(path)


def _shown(service: Service) -> Callable[[str | None], Any]:
    """Return the function from an uploaded file to what the page shows of it."""

    async def shown(path: str | None) -> tuple[Any, Any, Any, str]:
        if path is None:
            return None, *_hidden(), ""
        try:
            image = await service.ready(path)
            row = (await service.chances([image]))[0]
        except Refused as error:
            return None, *_hidden(), error.sentence
        best = int(row.argmax())
        overlay, why = await service.batcher.alone(_map, service, image, best)
        near = await service.batcher.alone(service.gallery.near, image)
        chances = {one.label: one.probability for one in service.ranked(row)}
        pictures = [(_enlarged(one), caption) for one, caption in near]
        shown_map, shown_near = (
            gradio.update(value=overlay, visible=overlay is not None),
            gradio.update(value=pictures, visible=bool(pictures)),
        )
        return chances, shown_map, shown_near, " ".join(filter(None, (why, service.gallery.note)))

    return shown


def _hidden() -> tuple[Any, Any]:
    """Return what takes map and similar images off the page."""
    return gradio.update(value=None, visible=False), gradio.update(value=None, visible=False)


def _map(service: Service, image: Pixels, best: int) -> tuple[Pixels | None, str]:
    """Return the image with what spoke for a class laid over it, or a sentence saying why there is no such map."""
    try:
        heat = activation_maps(service.classifier, [image], [best])[0]
    except Exception as error:  # whatever is wrong with the map, the classes are right
        return None, f"There is no map of what the network looked at ({error})."
    shown = _enlarged(image).astype(np.float32)
    laid = np.asarray(
        Image.fromarray(heat.astype(np.float32)).resize(
            (shown.shape[1], shown.shape[0]), Image.Resampling.BILINEAR
        )
    ).clip(0, 1)
    colours = np.asarray(matplotlib.colormaps["inferno"](laid))[..., :3] * 255
    share = 0.65 * laid[..., None]
    mixed: Pixels = (shown * (1 - share) + colours * share).round().astype(np.uint8)
    return mixed, ""


def _enlarged(image: Pixels) -> Pixels:
    """Return an image whose larger side is `_SIDE`; small ones keep their pixels visible."""
    height, width = image.shape[:2]
    factor = _SIDE / max(height, width)
    way = Image.Resampling.NEAREST if factor > 4 else Image.Resampling.BILINEAR
    return np.array(
        Image.fromarray(image).resize(
            (max(1, round(width * factor)), max(1, round(height * factor))), way
        )
    )


def _written(images: list[Pixels], folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return [str(path) for path in paths]
