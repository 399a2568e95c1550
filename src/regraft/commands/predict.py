"""`regraft predict`: many images through a finished run, as an iterator or into a file."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from regraft.commands.options import PredictionTarget as PredictionTarget
from regraft.commands.options import PredictOptions as PredictOptions
from regraft.data.stream import check_inputs, count_images, iterate_images
from regraft.errors import UserError
from regraft.inference.classifier import Classifier, Prediction
from regraft.inference.writers import PredictionJob, ResultWriter, output_format
from regraft.runs.folder import Run, load_run
from regraft.system.disk import check_writable
from regraft.system.files import expand_user
from regraft.system.hardware import tune_allocator
from regraft.system.locks import lock_path


@dataclass(frozen=True)
class PredictionSummary:
    """What was written.

    Args:
        out: The file.
        format: Its format.
        rows: Rows in the file.
        new: Rows of this call.
        unreadable: Images of this call that cannot be decoded.
        abstained: Images of this call with too little confidence.
        seconds: How long it took.
    """

    out: str
    format: str
    rows: int
    new: int
    unreadable: int
    abstained: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self)


def predict(
    run: str | Path | Run,
    images: Sequence[str | Path],
    options: PredictOptions = PredictOptions(),
) -> Iterator[Prediction]:
    """Return an iterator over a prediction for each image.

    Nothing is read before the arguments are known to be good.

    Args:
        run: A run, or its folder.
        images: Files, folders, archives or tables of images; "-" reads paths from standard input.
        options: How they are predicted.

    Raises:
        UserError: For a run, a path or a number that cannot be used, and where there is no image.
    """
    classifier = _load_classifier(run, images, options)
    return _Predicting(classifier, images, options).predictions(lambda name: False)


def predict_to(
    run: str | Path | Run,
    images: Sequence[str | Path],
    target: PredictionTarget,
    options: PredictOptions = PredictOptions(),
) -> PredictionSummary:
    """Write a row for each image to a file as they come; returns what was written.

    Args:
        run: A run, or its folder.
        images: As for `predict`.
        target: The file.
        options: How images are predicted.

    Raises:
        UserError: As `predict`; and when the file exists and is neither resumed nor overwritten.
    """
    started = time.perf_counter()
    if target.out is None:
        raise UserError(
            "No file was given. Expected the file that predictions are written to. Name it with "
            "--out."
        )
    out = expand_user(target.out)
    format = output_format(target.format, out)
    check_writable(out.parent, out)
    classifier = _load_classifier(run, images, options)
    job = PredictionJob(
        run=classifier.run.name,
        plan_digest=classifier.run.plan.digest,
        weights_digest=classifier.run.weights_digest(),
        format=format,
        top=options.top,
        min_confidence=options.min_confidence,
    )
    unreadable = 0
    abstained = 0
    with lock_path(out.parent, out.name):
        writer = ResultWriter(out, job, target.resume, target.overwrite, part_rows=target.part_rows)
        predicting = _Predicting(classifier, images, options, writer.before)
        try:
            predictions = predicting.predictions(writer.__contains__)
            while batch := list(islice(predictions, classifier.batch_size)):
                writer.add([prediction.to_json(options.top) for prediction in batch])
                unreadable += sum(prediction.error is not None for prediction in batch)
                abstained += sum(prediction.abstained for prediction in batch)
        except BaseException:
            writer.close()
            if not writer.rows:
                writer.discard()
            raise
        writer.finish()
    return PredictionSummary(
        out=str(out),
        format=format,
        rows=writer.rows,
        new=writer.rows - writer.before,
        unreadable=unreadable,
        abstained=abstained,
        seconds=round(time.perf_counter() - started, 3),
    )


def _load_classifier(
    run: str | Path | Run, images: Sequence[str | Path], options: PredictOptions
) -> Classifier:
    """Return the classifier, its weights loaded: what does not fit is found before any writing."""
    least = options.min_confidence
    if least is not None and not 0 < least <= 1:
        raise UserError(
            f"--min-confidence {least:g} was given. Expected a probability above 0, at most 1. "
            "Leave it out to have every image answered."
        )
    if options.batch_size < 0:
        raise UserError(
            f"--batch-size {options.batch_size} was given. Expected 1 or more. Leave it out to "
            "take what suits the machine."
        )
    finished = run if isinstance(run, Run) else load_run(run)
    check_inputs(images)
    tune_allocator()
    runtime = options.runtime
    classifier = Classifier(finished, runtime.device, batch_size=options.batch_size)
    if least is not None:
        runtime.reporter.log(
            f"Probabilities are calibrated: logits divided by {classifier.temperature:.3f}, which "
            f"suits {finished.scores.val.n:,} validation images best."
        )
    _ = classifier.inference
    return classifier


@dataclass(frozen=True)
class _Predicting:
    classifier: Classifier
    images: Sequence[str | Path]
    options: PredictOptions
    before: int = 0

    def predictions(self, is_known: Callable[[str], bool]) -> Iterator[Prediction]:
        """Yield a prediction for each image that is not known yet."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # names of files are bytes
        total = max(count_images(self.images), 0)
        done = self.before
        items = iterate_images(self.images, sys.stdin)
        fresh = (item for item in items if not is_known(item.name))
        reporter = self.options.runtime.reporter
        for prediction in self.classifier.stream(fresh, self.options.min_confidence):
            done += 1
            if done % self.classifier.batch_size == 0 or done == total:
                reporter.progress("predict", done, total)
            yield prediction
        if not done:
            names = ", ".join(map(str, self.images))
            raise UserError(
                f"No image was found in {names}. Expected image files, or folders, archives or "
                "tables of them. Check the path."
            )
