"""How fast each way of training a part runs on this machine, measured once and remembered, so that the same run takes the same way again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from regraft.features.batches import Batches
from regraft.plans.schema import Plan
from regraft.runs.folder import write_json
from regraft.system.hardware import describe_environment, has_bfloat16
from regraft.training.autotune import ExecutionPlan, choose_execution
from regraft.training.trainer import TransferModule
from regraft.workflow.settings import Settings


def paced(
    module: TransferModule, batches: Batches, plan: Plan, notes: Path, settings: Settings
) -> ExecutionPlan:
    """Return how a phase is trained: by what its plan says, and by what a few steps take where that is left open.

    Args:
        module: The trained part and its head.
        batches: What it will be trained on; the first batch is looked at.
        plan: The plan.
        notes: Where this run notes what was measured; read first, so that a resumed run goes on as it began.
        settings: `compile` counts; what was measured is remembered in `home`.
    """
    steps = module.phase.epochs * len(batches)
    precision = plan.train_precision if has_bfloat16(str(module.device.type)) else "float32"
    where = _name(module, batches, plan)
    shelf = settings.home / "paces" / f"{where}.json"
    known = next((_read(path) for path in (notes, shelf) if path.is_file()), {})
    before = dict(known)
    batch = next(iter(Batches(batches.read, batches.labels, batches.size, batches.seed)))
    chosen = choose_execution(module.ready(), batch, steps, precision, settings.compile, known)
    if known != before or not notes.is_file():
        for path in (shelf, notes):  # who is killed between them begins anew with both
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    if len(known) > 1:
        settings.watcher.say(
            f"Training in {chosen.precision}{', compiled' if chosen.compiled else ''}: {chosen.why}."
        )
    return chosen


def _read(path: Path) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _name(module: TransferModule, batches: Batches, plan: Plan) -> str:
    """Return a name for what is run, on what, and by which code."""
    environment = describe_environment()
    state = hashlib.blake2b(digest_size=16)
    for part in (
        str(module.suffix.body),
        repr(module.head),
        module.phase.batch_norm,
        batches.size,
        plan.resolution_of(module.phase),
        str(module.device),
        environment["processor"],
        environment["gpu"],
        environment["threads"],
        torch.__version__,
    ):
        state.update(f"{part}\x1e".encode())
    return state.hexdigest()
