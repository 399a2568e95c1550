"""Techniques: functions from facts about the model and the data to a plan, one for each method."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

from regraft.data.dataset import DatasetInfo
from regraft.errors import UserError, unknown_name_error
from regraft.plans.schema import ModelInfo, Phase, Plan
from regraft.system.imports import current_folder_importable

Technique = Callable[[ModelInfo, DatasetInfo], Plan]
TECHNIQUES: dict[str, Technique] = {}
DEFAULT_TECHNIQUES = (
    "linear-probe",
    "multi-layer-probe",
    "feature-extraction",
    "fine-tune-top",
    "fine-tune",
    "from-scratch",
)

_MAX_PROBED_BLOCKS = 16  # of a multi-layer probe, evenly spread over the depth
_L2 = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_ENLARGED = ((16, 80), (112, 96), (160, 128))  # images of up to so many pixels, shown at so many


def register_technique(function: Technique) -> Technique:
    """Register a function as a technique under its own name, with dashes; returns it unchanged."""
    TECHNIQUES[function.__name__.replace("_", "-")] = function
    return function


@register_technique
def linear_probe(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Freeze the network, fit a linear layer on its last features."""
    return _to_plan("linear-probe", model, data, [_solved_phase()])


@register_technique
def multi_layer_probe(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Freeze the network, fit a linear layer on the pooled features of many blocks side by side."""
    late = model.blocks[len(model.blocks) // 6 :]  # the first few only see edges
    step = math.ceil(len(late) / _MAX_PROBED_BLOCKS)
    from_the_end = late[::-1][::step]
    return _to_plan("multi-layer-probe", model, data, [_solved_phase()], until=from_the_end[::-1])


@register_technique
def feature_extraction(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Freeze the network, train a head with one hidden layer, batch norm and dropout."""
    phase = Phase(
        train="head",
        epochs=_choose_epochs(data, 30),
        lr=1e-3,
        weight_decay=1e-2,
        schedule="cosine",
        patience=8,
        batch_size=_choose_batch_size(data, 128),
    )
    head = "bn, dense 256 relu, bn, dropout 0.3"
    return _to_plan("feature-extraction", model, data, [phase], head=head)


@register_technique
def fine_tune_top(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Freeze the lower stages, train the last quarter of them and a new head."""
    phase = _fine_tuned_phase(data, train=_last_quarter(model), lr=2e-3, epochs=8)
    return _to_plan("fine-tune-top", model, data, [phase])


@register_technique
def fine_tune(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Train everything from the pretrained weights, smaller rates for earlier stages."""
    phase = _fine_tuned_phase(data, train="all", lr=2e-3, epochs=5)
    return _to_plan("fine-tune", model, data, [phase])


@register_technique
def probe_then_fine_tune(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Fit the head on frozen features first, then train everything slowly (Kumar 2022)."""
    phase = _fine_tuned_phase(data, train="all", lr=1e-3, epochs=5)
    return _to_plan("probe-then-fine-tune", model, data, [_solved_phase(), phase])


@register_technique
def gradual_unfreezing(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Fit the head, then train the top, the upper half, everything, ever slower (Howard 2018)."""
    upper_half = model.stages[len(model.stages) // 2]
    phases = [
        _solved_phase(),
        _fine_tuned_phase(data, train=_last_quarter(model), lr=2e-3, epochs=2),
        _fine_tuned_phase(data, train=upper_half, lr=1e-3, epochs=2),
        _fine_tuned_phase(data, train="all", lr=5e-4, epochs=2),
    ]
    return _to_plan("gradual-unfreezing", model, data, phases)


@register_technique
def from_scratch(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Train the same network from random weights; shows what the pretrained ones were worth."""
    phase = _fine_tuned_phase(data, train="all", lr=1e-3, epochs=5)
    phase = phase.model_copy(update={"layer_decay": 1.0, "batch_norm": "adapt"})
    return _to_plan("from-scratch", model, data, [phase], weights="random")


def find_technique(name: str) -> Technique:
    """Return a registered technique, or a user's own `module:function`.

    Raises:
        UserError: For an unknown name, or code that cannot be imported.
    """
    if name in TECHNIQUES:
        return TECHNIQUES[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise unknown_name_error("technique", name, TECHNIQUES)
    try:
        with current_folder_importable():
            own: Technique = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"The technique {name} cannot be imported ({error}). "
            "Expected module:function that Python finds from here."
        ) from error
    return own


def make_technique_plan(name: str, model: ModelInfo, data: DatasetInfo) -> Plan:
    """Return the plan of a technique for this model and these images.

    Raises:
        UserError: For an unknown name, code that cannot be imported, or one that gives no plan.
    """
    write_plan = find_technique(name)
    with current_folder_importable():
        plan: object = write_plan(model, data)
    if not isinstance(plan, Plan):
        raise UserError(
            f"The technique {name} returned {type(plan).__name__}. Expected a regraft Plan."
        )
    return plan


def technique_summary(name: str) -> str:
    """Return the one sentence that says what a technique does."""
    return (TECHNIQUES[name].__doc__ or "").strip().splitlines()[0]


def suitable_resolution(model: ModelInfo, data: DatasetInfo) -> int:
    """Return the side in pixels that suits images of this size.

    Small images are enlarged (BiT, Kolesnikov 2020); large ones get the resolution of the weights.
    """
    if model.fixed_resolution:
        return model.resolution
    side = max(data.size)
    for limit, target in _ENLARGED:
        if side <= limit:
            return target
    return model.resolution


def _to_plan(
    name: str, model: ModelInfo, data: DatasetInfo, phases: list[Phase], **fields: Any
) -> Plan:
    return Plan(
        backbone=model.name,
        technique=name,
        resolution=suitable_resolution(model, data),
        phases=tuple(phases),
        **fields,
    )


def _solved_phase() -> Phase:
    return Phase(train="head", optimizer="lbfgs", l2=_L2)


def _fine_tuned_phase(data: DatasetInfo, train: str, lr: float, epochs: int) -> Phase:
    return Phase(
        train=train,
        optimizer="adamw",
        lr=lr,
        epochs=_choose_epochs(data, epochs),
        batch_size=_choose_batch_size(data, 64),
        weight_decay=0.01,
        layer_decay=0.8,
        schedule="warmup-cosine",
        label_smoothing=0.1,
        monitor="val_accuracy",
        batch_norm="keep",
    )


def _last_quarter(model: ModelInfo) -> str:
    """Return the first stage of the last quarter of them, at least the last one."""
    return model.stages[-max(1, len(model.stages) // 4)]


def _choose_epochs(data: DatasetInfo, usual: int) -> int:
    """Return more epochs for few images and fewer for many: the number of steps differs less."""
    if data.images < 500:
        factor = 2.0
    elif data.images < 20_000:
        factor = 1.0
    else:
        factor = 0.6
    return max(1, round(usual * factor))


def _choose_batch_size(data: DatasetInfo, usual: int) -> int:
    return usual if data.images >= 500 else max(8, usual // 4)
