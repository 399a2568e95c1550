"""`regraft fit`: carry one network over in one way, and leave a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.checks.duplicates import count_leaks
from regraft.commands.resolve import require_writable, resolve_plan, split_dataset
from regraft.data.dataset import Dataset
from regraft.data.load import load_dataset
from regraft.data.split import Split
from regraft.errors import UserError
from regraft.evaluation.scores import compute_scores
from regraft.features.parts import OpenedParts, open_parts
from regraft.features.policy import CachePolicy
from regraft.features.scoring import compute_logits
from regraft.models.network import TransferNetwork
from regraft.models.pool import BackbonePool
from regraft.options import Options, PlanOverrides, Runtime
from regraft.plans.schema import Plan
from regraft.runs.directory import choose_dir
from regraft.runs.folder import Run, load_run
from regraft.runs.provenance import describe_origin
from regraft.runs.writer import Judged, LogFile, PhaseRecord, RunWriter, SplitImages
from regraft.system.hardware import peak_memory_mb, tune_allocator
from regraft.system.timer import Timer
from regraft.training.freeze_check import freeze_verdict
from regraft.training.loggers import TrackingReporter, require_tracker, tracking_reporter
from regraft.training.phase import PhaseInputs, PhaseResult, train_phase

_TIMED = ("load", "extract", "train", "evaluate")


@dataclass(frozen=True)
class FitData:
    """The images of a run.

    Args:
        dataset: All images.
        split: Their parts.
        origin: Where they came from, see `describe_origin`.
        parts: Train and val, where they were opened already.
    """

    dataset: Dataset
    split: Split
    origin: Mapping[str, Any]
    parts: OpenedParts | None = None


def fit(
    data: str | Path | Dataset,
    technique: str = "linear-probe",
    overrides: PlanOverrides = PlanOverrides(),
    options: Options = Options(),
) -> Run:
    """Return the finished run of one technique, or of a plan; the test part stays held out.

    Args:
        data: A known name, a folder, an archive, a CSV, Parquet or .npz file, or a dataset.
        technique: A name that `regraft techniques` lists, or `module:function`; ignored where a
            plan is given.
        overrides: What else is asked of the plan.
        options: Images, cache, machine and run folder.

    Raises:
        UserError: For a mistake of the caller, in one sentence; nothing is written then.
        KeyboardInterrupt: When the user stops it; `resume` goes on after the last whole epoch.
    """
    tune_allocator()
    require_writable(options.run_dir.out)
    dataset = load_dataset(data, options.cache.dir)
    split = split_dataset(dataset, options.data)
    pool = BackbonePool(options.runtime.device)
    plan = resolve_plan(technique, dataset, split, overrides, pool)
    path = choose_dir(options.run_dir, "runs", f"{dataset.name}-{plan.technique}")
    images = FitData(dataset, split, describe_origin(data, options.data))
    return fit_plan(plan, images, path, options, pool)


def fit_plan(plan: Plan, images: FitData, path: Path, options: Options, pool: BackbonePool) -> Run:
    """Return the finished run of a plan.

    Args:
        plan: What to do.
        images: The images.
        path: The run's folder.
        options: Images, cache, machine and run folder.
        pool: Backbones.

    Raises:
        UserError: When plan, images and folder do not go together; nothing is written then.
    """
    require_tracker(options.run_dir.track)
    timer = Timer(_TIMED)
    with timer.time("load"):
        network = TransferNetwork(pool.share(plan), plan, images.dataset.classes)
        plan.check(network.backbone.facts, images.dataset.classes)
        for phase in plan.phases:
            network.cut(phase)  # says what does not fit, before anything is decoded
        parts = images.parts
        if parts is None:
            parts = open_parts(images.dataset, images.split, network.preprocess, options)
    with RunWriter(path, plan, images.split.digest, options.run_dir) as writer:
        if writer.is_finished:
            return load_run(path)
        return _Fit(network, parts, writer, options, timer).run(images.origin)


class _Fit:
    """A run under way."""

    def __init__(
        self,
        network: TransferNetwork,
        parts: OpenedParts,
        writer: RunWriter,
        options: Options,
        timer: Timer,
    ) -> None:
        self.network = network
        self.plan = network.plan
        self.writer = writer
        self.resume = options.run_dir.resume
        self.timer = timer
        self.tracker = _start_tracker(writer, options)
        reporter = LogFile(writer.log_path, self.tracker or options.runtime.reporter)
        self.runtime: Runtime = replace(options.runtime, reporter=reporter)
        self.parts = parts.for_run(self.runtime)
        self.policy = CachePolicy(options.cache)
        self.record = PhaseRecord()

    def run(self, origin: Mapping[str, Any]) -> Run:
        """Do every phase that is not done yet, score, and write the folder."""
        inputs = PhaseInputs(
            self.parts["train"], self.parts["val"], self.policy, self.runtime, self.timer
        )
        for number in range(len(self.plan.phases)):
            if self._resume_phase(number):
                continue
            files = self.writer.phase_files(number)
            result = train_phase(self.network, inputs, files, self.resume)
            self._keep(number, result)
        with self.timer.time("evaluate"):
            logits = self._score()
        run = self._finish(origin, logits)
        if self.tracker is not None:
            self.tracker.close(run.scores)
        return run

    def _keep(self, number: int, result: PhaseResult) -> None:
        record = self.record
        record.history += result.history
        record.freeze_checks.append(result.freeze_check)
        if result.execution is not None:
            record.executions.append(result.execution)
        record.seconds = self.timer.seconds
        record.total = self.timer.total
        self.writer.save_phase(number, self.network.state(), record)

    def _resume_phase(self, number: int) -> bool:
        """Take over a phase that an earlier process finished; returns whether there was one."""
        finished = self.writer.load_phase(number)
        if finished is None:
            return False
        tensors, self.record = finished
        self.network.load_state(tensors)
        self.network.use_training_layout()
        self.timer.resume(self.record.seconds, self.record.total)
        self.runtime.reporter.log(f"Phase {number + 1} of {len(self.plan.phases)} was done before.")
        return True

    def _score(self) -> dict[str, NDArray[np.float32]]:
        """Return the logits of train and val in eval mode, without augmentation."""
        cut = self.network.final_cut()
        logits = {}
        for name in ("train", "val"):
            logits[name] = compute_logits(self.network, cut, self.parts[name], self.policy)
        if not all(np.isfinite(values).all() for values in logits.values()):
            raise UserError(
                f"{self.writer.path.name} diverged: the trained network gives numbers that are not "
                "finite. Expected a learning rate that it can bear. Lower phases.N.lr."
            )
        return logits

    def _finish(self, origin: Mapping[str, Any], logits: Mapping[str, NDArray[np.float32]]) -> Run:
        parts = self.parts
        val = parts["val"]
        images = SplitImages(parts.dataset, parts.split, parts.rows, parts.skipped)
        judged = Judged(val.dataset.keys, val.labels, logits["val"])
        scores = {**self._describe(origin), **self._measure(logits)}
        return self.writer.finish(self.network.state(), images, self.record, judged, scores)

    def _describe(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `scores.json` says of what was done."""
        plan = self.plan
        return {
            "backbone": plan.backbone,
            "technique": plan.technique,
            "seed": plan.seed,
            "resolution": plan.resolution,
            "weights": self.network.backbone.weights,
            "data": self.parts.dataset.name,
            "origin": dict(origin),
            "plan_digest": plan.digest,
            "split_digest": self.parts.split.digest,
        }

    def _measure(self, logits: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
        """Return what `scores.json` says of what came out, and of what it took."""
        parts = self.parts
        record = self.record
        entries = [*parts["train"].entries.values(), *parts["val"].entries.values()]
        hits = [entry for entry in entries if entry.hit]
        shared_seconds = sum(entry.seconds for entry in hits)
        cached_bytes = sum(entry.bytes for entry in entries)
        all_hit = bool(entries) and len(hits) == len(entries)
        scores = {}
        for name in ("train", "val"):
            scores[name] = compute_scores(logits[name], parts[name].labels).to_json()
        return {
            **scores,
            "seconds": self.timer.to_json(),
            "contract": freeze_verdict(record.freeze_checks),
            "leaks": count_leaks(parts.dataset, parts.split),
            "skipped": len(parts.skipped),
            "paces": record.executions,
            "shared_seconds": round(shared_seconds, 3),
            "parameters": self.network.count_parameters(),
            "peak_memory_mb": peak_memory_mb(),
            "cache": {"hit": all_hit, "bytes": cached_bytes},
        }


def _start_tracker(writer: RunWriter, options: Options) -> TrackingReporter | None:
    kind = options.run_dir.track
    if kind is None:
        return None
    inner = options.runtime.reporter
    return tracking_reporter(inner, kind, writer.track_path, writer.plan)
