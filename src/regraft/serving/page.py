"""The web page: drop, photograph or paste an image; see classes, an activation map and neighbours.

Nothing comes from outside: fonts are the system's, and a content policy keeps the browser from
asking any other server. Importing this loads Gradio.
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
from numpy.typing import NDArray
from PIL import Image

from regraft.runs.folder import Run
from regraft.serving.app import Pixels, Service
from regraft.serving.limits import RequestRefused

_SHOWN_SIDE = 448  # pixels
_TOP = 5  # classes
_MAP_OPACITY = 0.65
_UPLOAD_SECONDS = 600  # until an uploaded file is deleted
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "connect-src 'self' blob: data:",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
    )
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
_MONOSPACE_FONTS = ["ui-monospace", "monospace"]


def mount_page(app: FastAPI, service: Service, scratch: Path) -> Any:
    """Return the application with the page at `/`.

    Args:
        app: The HTTP interface.
        service: What answers.
        scratch: Folder of the examples, and of uploads for some minutes.
    """
    blocks = _build_page(service, scratch)
    blocks.queue(max_size=service.limits.requests)
    mounted = gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        ssr_mode=False,
        show_error=True,
        run_history=False,
        mcp_server=False,
        theme=gradio.themes.Default(font=_FONTS, font_mono=_MONOSPACE_FONTS),
        footer_links=[],
        max_file_size=service.limits.body,
        allowed_paths=[str(scratch)],
    )
    return _PolicyMiddleware(mounted)


class _PolicyMiddleware:
    """An ASGI application whose answers forbid the browser to load anything from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), *_HEADERS]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _build_page(service: Service, scratch: Path) -> Any:
    """Return the page; only files in `scratch` are shown or accepted."""
    run = service.classifier.run
    examples = _write_examples(service.similar.examples, scratch / "examples")
    with gradio.Blocks(
        title=f"regraft: {run.path.name}",
        analytics_enabled=False,
        delete_cache=(_UPLOAD_SECONDS, _UPLOAD_SECONDS),
    ) as blocks:
        gradio.Markdown(_describe_run(run))
        with gradio.Row():
            with gradio.Column():
                image = _add_input(examples, scratch)
            with gradio.Column():
                outputs = _add_outputs(service.similar.note)
        for block in blocks.blocks.values():
            _accept_scratch_only(block, scratch)
        image.change(
            _make_handler(service),
            image,
            outputs,
            api_visibility="private",
            concurrency_limit=8,
            show_progress="minimal",
        )
    return blocks


def _describe_run(run: Run) -> str:
    val = run.scores["val"]
    low, high = val["ci95"]
    return (
        f"# {_escape_markdown(run.path.name)}\n{_escape_markdown(run.plan.backbone)}, "
        f"transferred by {_escape_markdown(run.plan.technique)} to {len(run.classes):,} classes; "
        f"validation accuracy {val['accuracy']:.1%} on {val['n']:,} images "
        f"(95 % interval {low:.1%} to {high:.1%}). "
        "Images stay on the machine that serves this page."
    )


def _add_input(examples: list[str], scratch: Path) -> Any:
    """Add the image that people give, with examples below it."""
    image = gradio.Image(
        type="filepath",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        label="Image",
        height=_SHOWN_SIDE,
        elem_id="image",
    )
    # Gradio's own would decode the image first, without our limits and messages
    image.preprocess = _make_preprocess(scratch)
    if examples:
        gradio.Examples(
            [[path] for path in examples],
            [image],
            label="Validation images to try",
            cache_examples=False,
        )
    return image


def _add_outputs(note: str) -> list[Any]:
    """Add what the page shows of an image: classes, activation map, similar images, message."""
    classes = gradio.Label(num_top_classes=_TOP, label="Classes", elem_id="classes")
    activation_map = gradio.Image(
        visible=False,
        label="Class-activation map of the first class",
        interactive=False,
        elem_id="map",
        buttons=["fullscreen"],
    )
    similar = gradio.Gallery(
        visible=False,
        label="Most similar training images, with cosine similarity",
        columns=3,
        interactive=False,
        elem_id="similar",
        buttons=[],
    )
    message = gradio.Markdown(note, elem_id="message")
    return [classes, activation_map, similar, message]


def _escape_markdown(name: str) -> str:
    """Return a name that Markdown and HTML show as it is."""

    def to_entity(match: re.Match[str]) -> str:
        return f"&#{ord(match[0])};"

    return re.sub(r"[^\w\s.-]", to_entity, " ".join(name.split()))


def _make_preprocess(scratch: Path) -> Callable[[Any], str | None]:
    """Return the function from what Gradio got to the path of an upload in `scratch`."""

    def preprocess(payload: Any) -> str | None:
        return None if payload is None else _require_inside(payload.path, scratch)

    return preprocess


def _accept_scratch_only(block: Any, scratch: Path) -> None:
    """Let a block of the page accept files in `scratch` only.

    Mounted in another application, Gradio would accept any file of the machine, and fetch
    addresses.
    """
    if not hasattr(block, "async_move_resource_to_block_cache"):
        return
    move = block.async_move_resource_to_block_cache

    async def move_from_scratch(path: Any, **options: Any) -> Any:
        return await move(None if path is None else _require_inside(path, scratch), **options)

    block.async_move_resource_to_block_cache = move_from_scratch


def _require_inside(path: Any, scratch: Path) -> str:
    """Return the path if it is in `scratch`; raises Gradio's error otherwise."""
    text = str(path)
    is_local = path is not None and "://" not in text
    if not is_local or not Path(text).resolve().is_relative_to(scratch.resolve()):
        raise gradio.Error(
            "Something other than an upload was sent. Expected an image file: nothing else is "
            "read here, and nothing fetched from elsewhere."
        )
    return text


def _make_handler(service: Service) -> Callable[[str | None], Any]:
    """Return the function from an uploaded file to what the page shows of it."""

    async def handle(path: str | None) -> tuple[Any, Any, Any, str]:
        if path is None:
            return None, _hide(), _hide(), ""
        try:
            image = await service.load_image(path)
            probabilities = (await service.predict_proba([image]))[0]
        except RequestRefused as error:
            return None, _hide(), _hide(), error.sentence
        best = int(probabilities.argmax())
        run_in_thread = service.batcher.run_in_thread
        overlay, problem = await run_in_thread(_draw_map, service, image, best)
        similar = await run_in_thread(service.similar.find_similar, image)
        ranked = service.rank_classes(probabilities)
        message = " ".join(filter(None, (problem, service.similar.note)))
        return (
            {each.label: each.probability for each in ranked},
            gradio.update(value=overlay, visible=overlay is not None),
            gradio.update(value=_enlarge_all(similar), visible=bool(similar)),
            message,
        )

    return handle


def _hide() -> Any:
    """Return what takes an image or a gallery off the page."""
    return gradio.update(value=None, visible=False)


def _draw_map(service: Service, image: Pixels, label: int) -> tuple[Pixels | None, str]:
    """Return an image under its class-activation map, or None and why there is no map."""
    try:
        heat = service.compute_maps(service.classifier, [image], [label])[0]
    except Exception as error:  # the classes are right, whatever is wrong with the map
        return None, f"There is no class-activation map ({error})."
    return _overlay_heat(_enlarge(image), heat.astype(np.float32)), ""


def _overlay_heat(image: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """Return an image with a heat map of any size, 0 … 1, laid over it."""
    size = (image.shape[1], image.shape[0])
    resized = Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR)
    heat = np.asarray(resized).clip(0, 1)
    colours = np.asarray(matplotlib.colormaps["inferno"](heat))[..., :3] * 255
    opacity = _MAP_OPACITY * heat[..., None]
    mixed = image.astype(np.float32) * (1 - opacity) + colours * opacity
    overlay: Pixels = mixed.round().astype(np.uint8)
    return overlay


def _enlarge_all(images: list[tuple[Pixels, str]]) -> list[tuple[Pixels, str]]:
    return [(_enlarge(image), caption) for image, caption in images]


def _enlarge(image: Pixels) -> Pixels:
    """Return an image with a larger side of `_SHOWN_SIDE`; small ones keep visible pixels."""
    height, width = image.shape[:2]
    factor = _SHOWN_SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resampling = Image.Resampling.NEAREST if factor > 4 else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(image).resize(size, resampling))


def _write_examples(images: list[Pixels], folder: Path) -> list[str]:
    """Write images as PNG files; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(images):
        path = folder / f"{number}.png"
        Image.fromarray(image).save(path)
        paths.append(str(path))
    return paths
