"""From what a user asks for to a plan, and a plan in plain words: what is frozen, computed once, trained, and for how long."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regraft.data.dataset import Dataset, Split
from regraft.features.extract import entry_bytes
from regraft.models.backbone import Backbone, load_backbone, model_info
from regraft.models.cut import Prefix, Suffix
from regraft.models.layers import cut_backbone
from regraft.models.transforms import transform
from regraft.models.weights import DEFAULT_BACKBONE
from regraft.plans.schema import Plan, override_plan, read_plan_values
from regraft.plans.techniques import make_technique_plan
from regraft.system.hardware import has_bfloat16, resolve_device
from regraft.workflow.keeping import costs, decide, pace, seconds
from regraft.workflow.settings import Settings
from regraft.workflow.story import final_cut, new_head, parameters

_PROBE = 16  # images of the pass that is timed for the estimate
_BACKWARD = 2.0  # a backward pass costs about two forward ones


@dataclass(frozen=True)
class Wish:
    """What a user asks of a plan; None leaves it to the technique or the plan file."""

    technique: str = "linear-probe"
    plan: str | Path | Plan | None = None
    backbone: str | None = None
    weights: str | None = None
    resolution: int | None = None
    seed: int | None = None
    changes: Sequence[str] = ()
    precision: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return what was asked for, by the plan's own names."""
        asked = {
            "backbone": self.backbone,
            "weights": self.weights,
            "resolution": self.resolution,
            "seed": self.seed,
        }
        if self.precision not in (None, "auto"):
            asked["precision"] = self.precision
        return {name: value for name, value in asked.items() if value is not None}


def make(data: Dataset, split: Split, wish: Wish, device: str = "auto") -> Plan:
    """Return the plan for these images: technique or plan file first, then what was asked for by name, then the changes.

    Args:
        data: The images.
        split: Its parts; techniques see the training images only.
        wish: What the user asks for.
        device: "auto", "cpu" or "cuda"; decides the precision that a technique's plan gets.

    Raises:
        UserError: For unknown names, or a plan that is faulty or does not fit the backbone or the classes.
    """
    if isinstance(wish.plan, Plan):
        values, where = wish.plan.model_dump(mode="json"), "The plan"
    elif wish.plan is not None:
        values, where = {**arithmetic(device), **read_plan_values(Path(wish.plan))}, str(wish.plan)
    else:
        values, where = _of_technique(data, split, wish, device), "The plan"
    asked = wish.fields()
    if values.get("weights") == "random" and wish.plan is None:
        asked.pop("weights", None)  # from scratch is from scratch
    made = override_plan({**values, **asked}, wish.changes, where)
    made.check(model_info(made.backbone), data.classes)
    return made


def _of_technique(data: Dataset, split: Split, wish: Wish, device: str) -> dict[str, Any]:
    facts = model_info(wish.backbone or DEFAULT_BACKBONE)
    plan = make_technique_plan(wish.technique, facts, data.take(split.train).facts)
    return {**plan.model_dump(mode="json"), **arithmetic(device)}


def arithmetic(device: str = "auto") -> dict[str, str]:
    """Return the fields of a plan that say in what arithmetic its two parts run, as suits the machine."""
    where = resolve_device(device)
    native = has_bfloat16(where)
    return {
        "precision": "bfloat16" if native else "float32",
        "train_precision": "float32" if not native else "bfloat16" if where == "cuda" else "auto",
    }


def explain(
    data: Dataset, split: Split, plan: Plan, settings: Settings | None = None
) -> dict[str, Any]:
    """Return in numbers and words what a plan would do, and about how long it would take; nothing is trained or kept.

    The estimate comes from timing one pass of a few blank images through the network; it leaves out start-up and compilation.
    """
    settings = settings or Settings()
    model = load_backbone(plan.backbone, plan.weights, plan.resolution, plan.seed)
    plan.check(model.facts, data.classes)
    top = new_head(model, plan, len(data.classes))
    phases = [_phase(number, model, plan, split, settings) for number in range(len(plan.phases))]
    return {
        "plan": plan.model_dump(mode="json"),
        "plan_digest": plan.digest,
        "data": data.name,
        "images": {name: len(split[name]) for name in ("train", "val", "test")},
        "classes": len(data.classes),
        "parameters": parameters(final_cut(model, plan), top),
        "phases": phases,
        "seconds": round(sum(phase["seconds"] for phase in phases), 1),
    }


def _phase(
    number: int, model: Backbone, plan: Plan, split: Split, settings: Settings
) -> dict[str, Any]:
    phase = plan.phases[number]
    model = model.at(plan.resolution_of(phase))
    prefix, suffix = cut_backbone(model, phase.train, plan.stages_taken, plan.flattens)
    counts = (len(split.train), len(split.val))
    looks = phase.looks
    epochs = 1 if phase.optimizer == "lbfgs" else phase.epochs
    trained = sum(p.numel() for p in suffix.parameters())
    needed, once, again, decision = 0, 0.0, 0.0, None
    if not prefix.is_empty:
        needed = entry_bytes(prefix, counts[0], looks) + entry_bytes(prefix, counts[1])
        decision = decide(model, prefix, plan, phase, counts, needed, settings)
        once, again = costs(
            prefix,
            plan,
            phase,
            counts,
            seconds(model, prefix, plan),
            pace(settings.home, needed),
        )
    forward = _forward(model, prefix, suffix, plan) if trained else 0.0
    work = epochs * (counts[0] * forward * (1 + _BACKWARD) + counts[1] * forward)
    solve = (
        len(phase.l2) * counts[0] * prefix.shapes[0].numel() * 4e-8
        if phase.optimizer == "lbfgs"
        else epochs * counts[0] * 5e-5
    )
    return {
        "train": phase.train,
        "optimizer": phase.optimizer,
        "epochs": epochs,
        "frozen_parameters": sum(p.numel() for p in prefix.parameters()),
        "trained_parameters_of_backbone": trained,
        "cache_bytes": needed,
        "kept": bool(decision and decision.kept),
        "decision": decision.why if decision else "",
        "seconds_without_cache": round(work + solve + again, 1),
        "seconds": round(work + solve + (once if decision and decision.kept else again), 1),
    }


def _forward(model: Backbone, prefix: Prefix, suffix: Suffix, plan: Plan) -> float:
    """Return the seconds for one image through the trained part, forwards."""
    blank, ids = (
        torch.zeros(_PROBE, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(_PROBE, dtype=torch.int64),
    )
    took = 0.0
    suffix.eval()
    with torch.inference_mode():
        features = prefix(transform(blank, ids, model.rules, model.resolution))
        for _ in range(2):  # the first pass warms up
            started = time.perf_counter()
            suffix(*features)
            took = time.perf_counter() - started
    return took / _PROBE
