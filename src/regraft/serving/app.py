"""The HTTP interface: one image or many in, classes with probabilities out, as JSON.

`/openapi.json` describes it. The web page is mounted beside it. Importing this loads FastAPI.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, File, HTTPException, Query, UploadFile
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from regraft.evaluation.scores import log_softmax
from regraft.inference.cam import activation_maps
from regraft.inference.classifier import Classifier
from regraft.serving.batching import Batcher, QueueFull
from regraft.serving.limits import LimitsMiddleware, RequestRefused, decode_image
from regraft.serving.options import Limits
from regraft.serving.similar import SimilarImages

_DECODER_THREADS = 2  # and so images decoded at once

Pixels = NDArray[np.uint8]
Result = TypeVar("Result")
ComputeMaps = Callable[[Classifier, Sequence[Pixels], Sequence[int]], list[NDArray[np.float32]]]


class ClassProbability(BaseModel):
    """One class with its probability."""

    label: str
    probability: float = Field(ge=0, le=1)


class Prediction(BaseModel):
    """The prediction for one image."""

    label: str = Field(description="the most probable class")
    probability: float = Field(ge=0, le=1, description="its probability")
    classes: list[ClassProbability] = Field(
        description="classes by descending probability, as many as `top` asks for"
    )


class BatchPrediction(BaseModel):
    """The prediction for one image of several, or why it cannot be read."""

    name: str | None = Field(description="the file name as it was sent")
    label: str | None = None
    probability: float | None = None
    classes: list[ClassProbability] = []
    error: str | None = Field(
        None, description="why the image cannot be read; the other images are still answered"
    )


class Batch(BaseModel):
    """The predictions for several images, in the order in which they were sent."""

    predictions: list[BatchPrediction]


class Health(BaseModel):
    """The state of the server."""

    status: str = "ok"
    run: str
    backbone: str
    classes: list[str]
    waiting: int = Field(description="images waiting for the network")
    similar: str = Field(
        description="whether similar training images can be shown: ready, preparing or none"
    )


class ErrorMessage(BaseModel):
    """Why a request was refused."""

    detail: str


Top = Annotated[int | None, Query(ge=1, description="how many classes to list; all by default")]
OneFile = Annotated[
    UploadFile, File(description="an image file: JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF")
]
ManyFiles = Annotated[list[UploadFile], File(description="image files")]
_RESPONSES: dict[int | str, dict[str, Any]] = {
    408: {"model": ErrorMessage, "description": "the request was not complete in time"},
    413: {"model": ErrorMessage, "description": "the request is too large"},
    422: {
        "model": ErrorMessage,
        "description": "no image that can be read, or too many pixels or images",
    },
    503: {"model": ErrorMessage, "description": "too many requests at one time; try again"},
}


class Service:
    """A classifier with a queue in front of it, which both the HTTP interface and the page use.

    Args:
        classifier: The run.
        similar: Its training images.
        limits: What is accepted.
        compute_maps: Returns class-activation maps, as `activation_maps` does.
    """

    def __init__(
        self,
        classifier: Classifier,
        similar: SimilarImages,
        limits: Limits,
        compute_maps: ComputeMaps = activation_maps,
    ) -> None:
        self.classifier = classifier
        self.similar = similar
        self.limits = limits
        self.compute_maps = compute_maps
        self.batcher = Batcher(classifier.logits, limits.waiting)
        self._decoders = ThreadPoolExecutor(_DECODER_THREADS, thread_name_prefix="decode")

    async def load_image(self, upload: Any) -> Pixels:
        """Return an uploaded file, or the file at a path, decoded and resized for the network.

        Raises:
            RequestRefused: When it is no image, or has too many pixels.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, self._load_image, upload)

    async def predict_proba(self, images: list[Pixels]) -> NDArray[np.float64]:
        """Return probabilities `(n, classes)`.

        Raises:
            RequestRefused: When the queue is full.
        """
        try:
            logits = await self.batcher.submit(images)
        except QueueFull:
            raise RequestRefused(
                503,
                f"{len(self.batcher.queue):,} images are waiting, and the queue has no room for "
                "more. Try again in a second.",
            ) from None
        return np.exp(log_softmax(logits))

    def rank_classes(
        self, probabilities: NDArray[np.float64], top: int | None = None
    ) -> list[ClassProbability]:
        """Return the classes of one image by descending probability."""
        order = np.argsort(-probabilities, kind="stable")[:top]
        names = self.classifier.classes
        ranked = []
        for number in order:
            probability = float(probabilities[number])
            ranked.append(ClassProbability(label=names[number], probability=probability))
        return ranked

    def get_health(self) -> Health:
        """Return the state of the server."""
        finished = self.classifier.run
        return Health(
            run=finished.path.name,
            backbone=finished.plan.backbone,
            classes=list(finished.classes),
            waiting=len(self.batcher.queue),
            similar=self.similar.state,
        )

    async def close(self) -> None:
        """Stop the threads."""
        await self.batcher.stop()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _load_image(self, upload: Any) -> Pixels:
        is_path = isinstance(upload, (str, Path))
        content = Path(upload).read_bytes() if is_path else upload.file.read()
        return self.classifier.preprocess.store(decode_image(content, self.limits))


def make_app(service: Service) -> FastAPI:
    """Return the application with `/predict`, `/predict/batch`, `/health` and `/openapi.json`."""

    @asynccontextmanager
    async def run_lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.batcher.start()
        yield
        await service.close()

    async def predict(image: OneFile, top: Top = None) -> Prediction:
        """Predict the class of one image."""
        return await _predict(service, image, top)

    async def predict_batch(images: ManyFiles, top: Top = None) -> Batch:
        """Predict the class of each of several images; one that cannot be read has an error."""
        return await _predict_batch(service, images, top)

    async def health() -> Health:
        """Return the state of the server."""
        return service.get_health()

    run = service.classifier.run
    app = FastAPI(
        title=f"regraft: {run.path.name}",
        description=f"{run.plan.backbone}, transferred to {len(run.classes)} classes.",
        docs_url=None,
        redoc_url=None,
        lifespan=run_lifespan,
    )
    app.add_api_route(
        "/predict", predict, methods=["POST"], response_model=Prediction, responses=_RESPONSES
    )
    app.add_api_route(
        "/predict/batch",
        predict_batch,
        methods=["POST"],
        response_model=Batch,
        responses=_RESPONSES,
    )
    app.add_api_route("/health", health, methods=["GET"], response_model=Health)
    app.add_middleware(LimitsMiddleware, limits=service.limits, to_error=_to_http_error)
    return app


async def _predict(service: Service, upload: UploadFile, top: int | None) -> Prediction:
    image = await _answer(service.load_image(upload))
    probabilities = await _answer(service.predict_proba([image]))
    ranked = service.rank_classes(probabilities[0], top)
    return Prediction(label=ranked[0].label, probability=ranked[0].probability, classes=ranked)


async def _predict_batch(service: Service, uploads: list[UploadFile], top: int | None) -> Batch:
    if len(uploads) > service.limits.batch:
        raise _to_http_error(
            422,
            f"{len(uploads)} images were sent. Expected at most {service.limits.batch} in one "
            "request. Send them in several.",
        )
    images = await _load_images(service, uploads)
    readable = [image for image in images if not isinstance(image, RequestRefused)]
    probabilities = iter(await _answer(service.predict_proba(readable)) if readable else ())
    predictions = []
    for upload, image in zip(uploads, images, strict=True):
        if isinstance(image, RequestRefused):
            predictions.append(BatchPrediction(name=upload.filename, error=image.sentence))
            continue
        ranked = service.rank_classes(next(probabilities), top)
        prediction = BatchPrediction(
            name=upload.filename,
            label=ranked[0].label,
            probability=ranked[0].probability,
            classes=ranked,
        )
        predictions.append(prediction)
    return Batch(predictions=predictions)


async def _load_images(
    service: Service, uploads: Sequence[UploadFile]
) -> list[Pixels | RequestRefused]:
    """Return each upload decoded, or why it is refused; any other exception is raised."""
    work = [service.load_image(upload) for upload in uploads]
    images: list[Pixels | RequestRefused] = []
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, RequestRefused):
            raise result
        images.append(result)
    return images


async def _answer(work: Awaitable[Result]) -> Result:
    """Return what is awaited; a refusal becomes an HTTP error."""
    try:
        return await work
    except RequestRefused as error:
        raise _to_http_error(error.status, error.sentence) from None


def _to_http_error(status: int, sentence: str) -> HTTPException:
    headers = None
    if status == 503:
        headers = {"Retry-After": "1"}
    elif status in (408, 413):
        headers = {"Connection": "close"}
    return HTTPException(status, sentence, headers)
