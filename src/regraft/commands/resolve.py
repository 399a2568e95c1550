"""From what a user asks for to a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.data.dataset import Dataset
from regraft.data.split import Split
from regraft.models.pool import BackbonePool
from regraft.options import DEFAULT_BACKBONE, DataOptions, PlanOverrides
from regraft.plans.schema import Plan
from regraft.plans.techniques import make_technique_plan
from regraft.plans.toml import override_plan, read_plan_values
from regraft.system.disk import check_writable
from regraft.system.files import expand_user
from regraft.system.hardware import has_bfloat16, resolve_device


def split_dataset(dataset: Dataset, options: DataOptions) -> Split:
    """Return the split that the options ask for."""
    return dataset.split(options.split_seed, options.train_images, options.val_images)


def resolve_plan(
    technique: str, dataset: Dataset, split: Split, overrides: PlanOverrides, pool: BackbonePool
) -> Plan:
    """Return the plan for these images.

    A technique or a plan file first, then what was asked for by name, then `--set`.

    Args:
        technique: A known name or `module:function`; ignored where a plan is given.
        dataset: The images.
        split: Its parts; techniques see the training images only.
        overrides: What the user asks for.
        pool: Backbones; its device decides the precision that a technique's plan gets.

    Raises:
        UserError: For unknown names, or a plan that is faulty or does not fit backbone or classes.
    """
    source = "The plan"
    if isinstance(overrides.plan, Plan):
        values = overrides.plan.model_dump(mode="json")
    elif overrides.plan is not None:
        source = str(overrides.plan)
        values = {**default_precision(pool.device), **read_plan_values(Path(overrides.plan))}
    else:
        info = pool.info(overrides.backbone or DEFAULT_BACKBONE)
        made = make_technique_plan(technique, info, dataset.take(split.train).facts)
        values = {**made.model_dump(mode="json"), **default_precision(pool.device)}
    fields = overrides.fields()
    if values.get("weights") == "random" and overrides.plan is None:
        fields.pop("weights", None)  # from scratch is from scratch
    plan = override_plan({**values, **fields}, overrides.overrides, source)
    plan.check(pool.info(plan.backbone), dataset.classes)
    return plan


def default_precision(device: str = "auto") -> dict[str, Any]:
    """Return the fields of a plan that name the arithmetic of its two parts, for this machine."""
    device = resolve_device(device)
    if not has_bfloat16(device):
        return {"precision": "float32", "train_precision": "float32"}
    return {
        "precision": "bfloat16",
        "train_precision": "bfloat16" if device == "cuda" else "auto",
    }


def require_writable(out: str | Path | None) -> None:
    """Raise `UserError` before any work where a folder that was asked for cannot be written."""
    if out is None:
        return
    path = expand_user(out)
    if not path.is_file():  # a file is refused in words of its own
        check_writable(path, Path(out))
