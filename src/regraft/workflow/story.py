"""The story of one run: split, freeze, compute once, train the rest, score, write."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.checks.duplicates import count_leaks
from regraft.data.dataset import Dataset, Split, Unreadable
from regraft.errors import UserError, join_truncated
from regraft.evaluation.scores import compute_scores
from regraft.features.batches import Batches
from regraft.models.backbone import Backbone, load_backbone, restore_weights
from regraft.models.cut import Prefix, Suffix
from regraft.models.head import class_weights, make_head
from regraft.models.layers import cut_backbone, distance_to_head, earliest_layer, feature_width
from regraft.plans.schema import Phase, Plan
from regraft.runs.folder import (
    LogFile,
    Run,
    load_run,
    lock_run_dir,
    remove_checkpoints,
    sealed_digests,
    start_run,
    write_json,
    write_predictions,
    write_split,
    write_table,
    write_weights,
)
from regraft.system.hardware import (
    describe_environment,
    is_out_of_memory,
    peak_memory_mb,
    resolve_device,
)
from regraft.system.progress import ProgressReporter
from regraft.training.linear import fit_linear_probe
from regraft.workflow import origin
from regraft.workflow.contract import Contract, Optimized, verdict
from regraft.workflow.parts import Part, device_of, logits, readers
from regraft.workflow.settings import Settings
from regraft.workflow.tracking import Tracked, check, tracked

_BY_STEPS = (
    "lr",
    "epochs",
    "batch_size",
    "schedule",
    "warmup",
    "momentum",
    "layer_decay",
    "min_delta",
    "batch_norm",
)  # what only training by batches needs
_SOLVED_AT_ONCE = 500  # images read at a time for a solved head; they may come through the network


@dataclass
class Ledger:
    """Where the seconds went."""

    seconds: dict[str, float] = field(
        default_factory=lambda: {"load": 0.0, "extract": 0.0, "train": 0.0, "evaluate": 0.0}
    )
    started: float = field(default_factory=time.perf_counter)
    before: float = 0.0  # of the phases that an earlier process finished

    @property
    def total(self) -> float:
        """All seconds so far, those of an interrupted process included up to its last whole phase."""
        return self.before + time.perf_counter() - self.started

    @contextmanager
    def time(self, what: str) -> Iterator[None]:
        """Add the time that the block takes to `what`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - begun

    def plain(self) -> dict[str, float]:
        """Return the seconds, with their total since the start."""
        return {
            **{key: round(value, 3) for key, value in self.seconds.items()},
            "total": round(self.total, 3),
        }


def fit(
    data: Dataset,
    plan: Plan,
    out: Path,
    settings: Settings | None = None,
    network: Backbone | None = None,
) -> Run:
    """Carry out a plan and leave a run folder; the test part stays shut.

    Args:
        data: Labelled images.
        plan: What to do.
        out: The run's folder; must not exist or be empty, unless `settings` resume or overwrite.
        settings: Where things are kept, and how the run is begun.
        network: The plan's network where it is at hand already, as it came; only for plans that train nothing of it.

    Raises:
        UserError: When plan, images and folder do not go together; nothing is written then.
        KeyboardInterrupt: When the user stops it; `resume` goes on from the last whole epoch.
    """
    settings = settings or Settings()
    check(settings.track)
    ledger = Ledger()
    with ledger.time("load"):
        model = network or loaded(plan, settings)
        plan.check(model.facts, data.classes)
        for phase in plan.phases:
            cut_backbone(
                model.at(plan.resolution_of(phase)), phase.train, plan.stages_taken, plan.flattens
            )
        data, split = readable(data, model, ("train", "val"), settings)
    with lock_run_dir(out, "run", settings.resume, settings.overwrite):
        return _carried_out(data, split, plan, out, settings, model, ledger)


def _carried_out(
    data: Dataset,
    split: Split,
    plan: Plan,
    out: Path,
    settings: Settings,
    model: Backbone,
    ledger: Ledger,
) -> Run:
    if start_run(out, plan, split.digest, settings.resume, settings.overwrite):
        return load_run(out)
    watcher = LogFile(
        out / "log.txt",
        tracked(settings.watcher, settings.track, out, plan)
        if settings.track
        else settings.watcher,
    )
    told = replace(settings, watcher=watcher)
    train, val = (Part(name, data.take(split[name]), told) for name in ("train", "val"))
    work = _Work(model, plan, train, val, out, ledger, watcher, settings.resume)
    work.carry_out()
    _write(work, data, split, settings)
    done = load_run(out)
    if isinstance(watcher.inner, Tracked):
        watcher.inner.close(done.scores)
    return done


def loaded(plan: Plan, settings: Settings) -> Backbone:
    """Return the backbone of a plan on its device."""
    model = load_backbone(plan.backbone, plan.weights, plan.resolution, plan.seed)
    model.model.to(resolve_device(settings.device))
    return model


def readable(
    data: Dataset, model: Backbone, names: tuple[str, ...], settings: Settings
) -> tuple[Dataset, Split]:
    """Return the images and their split after decoding these parts, without the broken images where they may be skipped.

    Raises:
        Unreadable: When images cannot be decoded and `settings.skip_bad` is off.
        UserError: When too few are left.
    """
    lost: list[str] = []
    while True:
        try:
            split = settings.split(data)
        except UserError as error:
            if not lost:
                raise
            raise UserError(
                f"{error} {len(lost):,} images were left out because they cannot be decoded: {join_truncated(lost)}."
            ) from error
        bad: list[int] = []
        reasons: list[str] = []
        for name in names:
            try:
                Part(name, data.take(split[name]), settings).pixels(model)
            except Unreadable as error:
                bad += [int(split[name][row]) for row in error.rows]
                reasons += error.reasons
        if not bad:
            return data, split
        if not settings.skip_bad:
            raise Unreadable(bad, reasons)
        settings.watcher.say(
            f"Going on without {len(bad):,} images that cannot be decoded: {join_truncated(reasons)}."
        )
        data, lost = data.take(np.setdiff1d(np.arange(len(data)), bad)), lost + reasons


def final_cut(model: Backbone, plan: Plan) -> tuple[Prefix, Suffix]:
    """Return the halves by what was frozen throughout: what no phase of the plan trained, and the rest."""
    return cut_backbone(
        model,
        earliest_layer(model, [phase.train for phase in plan.phases]),
        plan.stages_taken,
        plan.flattens,
    )


def state(model: Backbone, halves: tuple[Prefix, Suffix], top: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that the finished network needs, by name; what was cut off is left out."""
    used = {id(tensor) for half in halves for tensor in (*half.parameters(), *half.buffers())}
    named = {**dict(model.model.named_parameters()), **dict(model.model.named_buffers())}
    kept = {name for name in model.model.state_dict() if id(named[name]) in used}
    return {
        **{f"backbone.{name}": named[name] for name in sorted(kept)},
        **{f"head.{name}": value for name, value in top.state_dict().items()},
    }


def new_head(model: Backbone, plan: Plan, classes: int) -> nn.Sequential:
    """Return an untrained head for the features that a plan takes."""
    made = make_head(
        plan.head, feature_width(model, plan.stages_taken, plan.flattens), classes, plan.seed
    )
    return made.to(next(model.model.parameters()).device)


def _adapts(top: nn.Module, suffix: Suffix, phase: Phase) -> bool:
    """Return whether some BatchNorm takes its statistics from the batch."""
    halves = (top, suffix) if phase.batch_norm == "adapt" else (top,)
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        for half in halves
        for module in half.modules()
    )


@dataclass
class _Work:
    """A run under way."""

    model: Backbone
    plan: Plan
    train: Part
    val: Part
    out: Path
    ledger: Ledger
    watcher: ProgressReporter
    resume: bool
    history: list[dict[str, Any]] = field(default_factory=list)
    contract: list[dict[str, Any]] = field(default_factory=list)
    paces: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def halves(self) -> tuple[Prefix, Suffix]:
        """The network by what is frozen throughout and what some phase trains."""
        return final_cut(self.model, self.plan)

    def carry_out(self) -> None:
        """Do every phase that is not done yet."""
        self.head = new_head(self.model, self.plan, len(self.train.data.classes))
        for number, phase in enumerate(self.plan.phases):
            if not (self.resume and self._done_before(number)):
                self._phase(number, phase)
                self._keep(number)

    def _phase(self, number: int, phase: Phase) -> None:
        model = self.model.at(self.plan.resolution_of(phase))
        prefix, suffix = cut_backbone(
            model, phase.train, self.plan.stages_taken, self.plan.flattens
        )
        promise = Contract(number, phase, prefix, suffix)
        with self.ledger.time("extract"):
            read_train, read_val = readers(
                self.train, self.val, model, prefix, promise.before, self.plan, phase
            )
        weights = class_weights(
            self.plan.class_weights, torch.from_numpy(self.train.labels), self.train.data.classes
        )
        with self.ledger.time("train"):
            if phase.optimizer == "lbfgs":
                rows, optimized = (
                    self._solve(phase, read_train, read_val, weights),
                    Optimized([], []),
                )
            else:
                rows, optimized = self._tune(number, phase, suffix, read_train, read_val, weights)
        self.history += [{"phase": number, **row} for row in rows]
        self.contract.append(promise.checked(prefix, optimized))
        if not self.contract[-1]["kept"]:
            self.watcher.say(
                f"The freeze contract is BROKEN: {join_truncated(self.contract[-1]['changed'])} changed though frozen. Do not trust this run."
            )

    def _solve(
        self, phase: Phase, read_train: Any, read_val: Any, weights: Tensor | None
    ) -> list[dict[str, Any]]:
        told = phase.model_dump(exclude_defaults=True)
        if aside := [f"{name} = {told[name]}" for name in _BY_STEPS if name in told]:
            self.watcher.say(f"A head that is solved has no use for {join_truncated(aside)}.")
        parts = []
        for read, part in ((read_train, self.train), (read_val, self.val)):
            features = torch.cat(
                [features for (features,), _ in Batches(read, part.labels, _SOLVED_AT_ONCE, None)]
            )
            parts.append((features, torch.from_numpy(part.labels).to(features.device)))
        weights = weights.to(parts[0][0].device) if weights is not None else None
        found = fit_linear_probe(
            parts[0],
            parts[1],
            len(self.train.data.classes),
            phase.l2,
            phase.monitor,
            weights,
            phase.label_smoothing,
            self.watcher,
        )
        self.head[-1].load_state_dict(found.layer.state_dict())
        for row in found.history:
            self.watcher.row(row)
        self.watcher.say(
            f"Solved the head for {len(found.history)} values of L2; {found.l2:g} does best on validation."
        )
        return found.history

    def _tune(
        self,
        number: int,
        phase: Phase,
        suffix: Suffix,
        read_train: Any,
        read_val: Any,
        weights: Tensor | None,
    ) -> tuple[list[dict[str, Any]], Optimized]:
        from regraft.training.trainer import TransferModule, describe_groups, fit_phase
        from regraft.workflow.pacing import paced

        seed, folder, share = self.plan.seed * 1009 + number, self.out / "checkpoints", 1
        module = TransferModule(
            suffix, self.head, phase, seed, distance_to_head(self.model), weights
        )
        module.to(device_of(self.model), memory_format=torch.channels_last)
        checks = Batches(read_val, self.val.labels, max(250, phase.batch_size), None)
        kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        resume = self.resume
        if phase.batch_size == 1 and _adapts(self.head, suffix, phase):
            raise UserError(
                "batch_size = 1 was given, but BatchNorm needs at least two images to train on. Give a larger batch_size."
            )
        while True:
            batches = Batches(
                read_train, self.train.labels, max(1, phase.batch_size // share), seed
            )
            try:
                chosen = paced(
                    module, batches, self.plan, folder / f"pace-{number}.json", self.train.settings
                )
                done = fit_phase(
                    module,
                    batches,
                    checks,
                    folder,
                    number,
                    chosen.precision,
                    self.watcher,
                    resume,
                    share,
                )
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or batches.size < 4:
                    raise
                share, resume = share * 2, False
                module.load_state_dict(kept)
                module.zero_grad(set_to_none=True)
                self.watcher.say(
                    f"Memory is short; the phase starts again with batches of {phase.batch_size // share}, {share} of which make a step."
                )
        self.paces.append({"phase": number, **chosen.plain()})
        best = next((row for row in done.history if row["epoch"] == done.best_epoch), {})
        value = best.get(phase.monitor, float("nan"))
        self.watcher.say(
            f"Trained from {phase.train!r} on; epoch {done.best_epoch + 1} of {len(done.history)} is kept ({phase.monitor} {value:.4f})."
        )
        return done.history, Optimized(describe_groups(module, phase), done.without_gradient)

    def _keep(self, number: int) -> None:
        write_weights(self._file(number, "safetensors"), state(self.model, self.halves, self.head))
        noted = {"history": self.history, "contract": self.contract, "paces": self.paces}
        write_json(
            self._file(number, "json"),
            {**noted, "seconds": self.ledger.seconds, "total": self.ledger.total},
        )

    def _done_before(self, number: int) -> bool:
        if not self._file(number, "json").is_file():
            return False
        import safetensors.torch

        kept = safetensors.torch.load_file(self._file(number, "safetensors"))
        restore_weights(
            self.model,
            {
                name.removeprefix("backbone."): value
                for name, value in kept.items()
                if name.startswith("backbone.")
            },
        )
        self.head.load_state_dict(
            {
                name.removeprefix("head."): value
                for name, value in kept.items()
                if name.startswith("head.")
            }
        )
        noted = json.loads(self._file(number, "json").read_text())
        for half in (
            self.halves[1],
            self.head,
        ):  # as training leaves it; sums of another layout differ in the last digit
            half.to(memory_format=torch.channels_last)
        self.history, self.contract, self.paces = (
            noted["history"],
            noted["contract"],
            noted["paces"],
        )
        self.ledger.seconds = {
            key: max(value, noted["seconds"][key]) for key, value in self.ledger.seconds.items()
        }
        self.ledger.before = noted["total"]
        self.watcher.say(f"Phase {number + 1} of {len(self.plan.phases)} was done before.")
        return True

    def _file(self, number: int, kind: str) -> Path:
        return self.out / "checkpoints" / f"phase-{number}.{kind}"


def _write(work: _Work, data: Dataset, split: Split, settings: Settings) -> None:
    """Score train and val in eval mode and write the folder; `scores.json` comes last."""
    plan, out, model = work.plan, work.out, work.model
    with work.ledger.time("evaluate"):
        said = {
            part.name: logits(part, model, *work.halves, work.head, plan)
            for part in (work.train, work.val)
        }
    if not all(np.isfinite(one).all() for one in said.values()):
        raise UserError(
            f"{out.name} diverged: the trained network gives numbers that are not finite. Expected a rate that it can bear. Lower phases.N.lr."
        )
    found = {
        part.name: compute_scores(said[part.name], part.labels).plain()
        for part in (work.train, work.val)
    }
    tensors = state(model, work.halves, work.head)
    used = [entry for part in (work.train, work.val) for entry in part.used.values()]
    write_weights(out / "model.safetensors", tensors)
    write_json(out / "environment.json", describe_environment())
    write_json(out / "classes.json", list(data.classes))
    write_split(out / "split.csv", data, split)
    write_table(out / "history.csv", work.history, exact=True)
    write_predictions(out / "predictions.npz", work.val.data.keys, work.val.labels, said["val"])
    write_json(out / "freeze.json", work.contract)
    scores = {
        "backbone": plan.backbone,
        "technique": plan.technique,
        "seed": plan.seed,
        "resolution": plan.resolution,
        "weights": model.weights,
        "data": data.name,
        "origin": origin.noted(settings),
        "plan_digest": plan.digest,
        "split_digest": split.digest,
        **found,
        "seconds": work.ledger.plain(),
        "contract": verdict(work.contract),
        "leaks": count_leaks(data, split),
        "files": sealed_digests(out),
        "paces": work.paces,
        "shared_seconds": round(sum(entry.seconds for entry in used if entry.hit), 3),
        "parameters": parameters(work.halves, work.head),
        "peak_memory_mb": peak_memory_mb(),
        "cache": {
            "hit": bool(used) and all(entry.hit for entry in used),
            "bytes": sum(entry.bytes for entry in used),
        },
    }
    write_json(out / "scores.json", scores)
    remove_checkpoints(out)


def parameters(halves: tuple[Prefix, Suffix], top: nn.Module) -> dict[str, int]:
    """Return how many parameters the network has, how many of them some phase trains, how many stay frozen, and the size of its buffers.

    Args:
        halves: By what is frozen throughout, from `final_cut`.
        top: The head.
    """
    prefix, suffix = halves
    frozen = sum(p.numel() for p in prefix.parameters())
    trained = sum(p.numel() for half in (suffix, top) for p in half.parameters())
    buffers = sum(b.numel() for half in (prefix, suffix, top) for b in half.buffers())
    return {"total": frozen + trained, "trainable": trained, "frozen": frozen, "buffers": buffers}
