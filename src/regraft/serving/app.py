"""The HTTP interface: one image or many in, classes with probabilities out, as JSON that `/openapi.json` describes.

Refuses to know the page; it is mounted beside. Loads FastAPI.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, File, HTTPException, Query, UploadFile
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from regraft.evaluation.scores import log_softmax
from regraft.inference.classifier import Classifier
from regraft.models.transforms import resize_center_crop, storage_size
from regraft.serving.batching import Batcher, Full
from regraft.serving.limits import Guard, Limits, Refused, decode_upload
from regraft.serving.similar import SimilarImages

_DECODERS = 2  # threads, and so images decoded at once

Pixels = NDArray[np.uint8]


class Chance(BaseModel):
    """One class with its probability."""

    label: str
    probability: float = Field(ge=0, le=1)


class Prediction(BaseModel):
    """What the network says of one image."""

    label: str = Field(description="the likeliest class")
    probability: float = Field(ge=0, le=1, description="its probability")
    classes: list[Chance] = Field(
        description="classes by falling probability, as many as were asked for"
    )


class Row(BaseModel):
    """What the network says of one image of several, or why it cannot be read."""

    name: str | None = Field(description="the file's name as it was sent")
    label: str | None = None
    probability: float | None = None
    classes: list[Chance] = []
    error: str | None = Field(
        None, description="why the image cannot be read; the others are answered all the same"
    )


class Batch(BaseModel):
    """What the network says of several images, in the order in which they were sent."""

    predictions: list[Row]


class Health(BaseModel):
    """How the server is."""

    status: str = "ok"
    run: str
    backbone: str
    classes: list[str]
    waiting: int = Field(description="images waiting for the network")
    similar: str = Field(
        description="whether similar training images can be shown: ready, preparing or none"
    )


class Fault(BaseModel):
    """Why a request was refused."""

    detail: str


Top = Annotated[int | None, Query(ge=1, description="how many classes to list; all when left out")]
One = Annotated[
    UploadFile, File(description="an image file: JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF")
]
Many = Annotated[list[UploadFile], File(description="image files")]
_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": Fault, "description": what}
    for status, what in {
        408: "the request did not come whole in time",
        413: "the request is too large",
        422: "no image that can be read, or too many pixels or images",
        503: "too much is being answered already; try again",
    }.items()
}


class Service:
    """A classifier with a queue in front of it: what both the HTTP interface and the page ask."""

    def __init__(self, classifier: Classifier, gallery: SimilarImages, limits: Limits) -> None:
        self.classifier, self.gallery, self.limits = classifier, gallery, limits
        self.batcher = Batcher(classifier.logits, limits.waiting)
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    async def ready(self, upload: Any) -> Pixels:
        """Return an uploaded file, or the file at a path, decoded and as small as the network needs it; raises `Refused`."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, self._ready, upload)

    async def chances(self, images: list[Pixels]) -> NDArray[np.float64]:
        """Return probabilities `(n, classes)`; raises `Refused` when the queue is full."""
        try:
            return np.exp(log_softmax(await self.batcher.ask(images)))
        except Full:
            raise Refused(
                503,
                f"{len(self.batcher.queue):,} images are waiting, as many as may. Try again in a second.",
            ) from None

    def ranked(self, row: NDArray[np.float64], top: int | None = None) -> list[Chance]:
        """Return the classes by falling probability."""
        names = self.classifier.classes
        return [
            Chance(label=names[number], probability=float(row[number]))
            for number in np.argsort(-row, kind="stable")[:top]
        ]

    async def close(self) -> None:
        """End the threads."""
        await self.batcher.stop()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _ready(self, upload: Any) -> Pixels:
        content = (
            Path(upload).read_bytes() if isinstance(upload, (str, Path)) else upload.file.read()
        )
        pixels, model = decode_upload(content, self.limits), self.classifier.network[0]
        return resize_center_crop(
            pixels, storage_size(pixels.shape[:2], model.resolution), model.rules.interpolation
        )


def make_app(service: Service) -> FastAPI:
    """Return the application with `POST /predict`, `POST /predict/batch`, `GET /health` and `GET /openapi.json`."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await service.batcher.start()
        yield
        await service.close()

    async def predict(image: One, top: Top = None) -> Prediction:
        """Say which class one image is."""
        row = (await _answered(service.chances([await _answered(service.ready(image))])))[0]
        ranked = service.ranked(row, top)
        return Prediction(label=ranked[0].label, probability=ranked[0].probability, classes=ranked)

    async def predict_batch(images: Many, top: Top = None) -> Batch:
        """Say which class each of several images is; one that cannot be read has its error, and the rest is answered."""
        if len(images) > service.limits.batch:
            raise _refusal(
                422,
                f"{len(images)} images were sent. Expected at most {service.limits.batch} in one request. Send them in several.",
            )
        read = await asyncio.gather(*[service.ready(one) for one in images], return_exceptions=True)
        strange = next(
            (
                one
                for one in read
                if isinstance(one, BaseException) and not isinstance(one, Refused)
            ),
            None,
        )
        if strange is not None:
            raise strange
        whole = [one for one in read if isinstance(one, np.ndarray)]
        rows = iter(await _answered(service.chances(whole)) if whole else ())
        found = []
        for sent, one in zip(images, read, strict=True):
            if isinstance(one, Refused):
                found.append(Row(name=sent.filename, error=one.sentence))
                continue
            ranked = service.ranked(next(rows), top)
            found.append(
                Row(
                    name=sent.filename,
                    label=ranked[0].label,
                    probability=ranked[0].probability,
                    classes=ranked,
                )
            )
        return Batch(predictions=found)

    async def health() -> Health:
        """Say how the server is."""
        finished = service.classifier.run
        waiting, similar = len(service.batcher.queue), service.gallery.state
        return Health(
            run=finished.path.name,
            backbone=finished.plan.backbone,
            classes=list(finished.classes),
            waiting=waiting,
            similar=similar,
        )

    about = f"What {service.classifier.run.plan.backbone}, carried over to {len(service.classifier.classes)} classes, says of images."
    app = FastAPI(
        title=f"regraft: {service.classifier.run.path.name}",
        description=about,
        docs_url=None,
        redoc_url=None,
        lifespan=life,
    )
    app.add_api_route(
        "/predict", predict, methods=["POST"], response_model=Prediction, responses=_FAULTS
    )
    app.add_api_route(
        "/predict/batch", predict_batch, methods=["POST"], response_model=Batch, responses=_FAULTS
    )
    app.add_api_route("/health", health, methods=["GET"], response_model=Health)
    app.add_middleware(Guard, limits=service.limits, too_large=_refusal)
    return app


async def _answered(work: Any) -> Any:
    """Return what is awaited; a refusal becomes an HTTP answer."""
    try:
        return await work
    except Refused as error:
        raise _refusal(error.status, error.sentence) from None


def _refusal(status: int, sentence: str) -> HTTPException:
    headers = (
        {"Retry-After": "1"}
        if status == 503
        else {"Connection": "close"}
        if status in (408, 413)
        else None
    )
    return HTTPException(status, sentence, headers)
