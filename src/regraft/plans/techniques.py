"""Door 2: functions from facts to a plan, one for each way of carrying a network over, in the field's words.

Refuses code: a technique decides numbers and names, everything else is in the plan that it returns.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from regraft.data.dataset import DatasetInfo
from regraft.errors import UserError, unknown_name_error
from regraft.plans.schema import ModelInfo, Phase, Plan

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

_MOST_PLACES = 16  # of a multi-layer probe, evenly spread over the depth
_L2 = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def technique(make: Technique) -> Technique:
    """Put a function on the shelf under its own name, with dashes."""
    TECHNIQUES[make.__name__.replace("_", "-")] = make
    return make


@technique
def linear_probe(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Freeze the network, solve a linear layer on its last features."""
    return _plan("linear-probe", model, data, _solved())


@technique
def multi_layer_probe(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Freeze the network, solve a linear layer on the pooled features of many blocks side by side."""
    late = model.blocks[len(model.blocks) // 6 :]  # the first few only see edges
    step = -(-len(late) // _MOST_PLACES)
    return _plan("multi-layer-probe", model, data, _solved(), until=late[::-1][::step][::-1])


@technique
def feature_extraction(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Freeze the network, train a head with a hidden layer, batch normalisation and dropout on its features."""
    phase = Phase(
        train="head",
        epochs=_epochs(data, 30),
        lr=1e-3,
        weight_decay=1e-2,
        schedule="cosine",
        patience=8,
        batch_size=_batch(data, 128),
    )
    return _plan(
        "feature-extraction", model, data, phase, head="bn, dense 256 relu, bn, dropout 0.3"
    )


@technique
def fine_tune_top(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Freeze the lower stages, train the last quarter of them and a new head."""
    return _plan("fine-tune-top", model, data, _tuned(data, train=_top(model), lr=2e-3, epochs=8))


@technique
def fine_tune(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Train everything from the pretrained weights, smaller rates for earlier stages."""
    return _plan("fine-tune", model, data, _tuned(data, train="all", lr=2e-3, epochs=5))


@technique
def probe_then_fine_tune(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Solve the head on frozen features first, then train everything with a small rate (Kumar 2022)."""
    return _plan(
        "probe-then-fine-tune", model, data, _solved(), _tuned(data, train="all", lr=1e-3, epochs=5)
    )


@technique
def gradual_unfreezing(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Solve the head, then train the top, then the upper half, then everything, with falling rates (Howard 2018)."""
    half = model.stages[len(model.stages) // 2]
    steps = [
        _tuned(data, train=stage, lr=lr, epochs=2)
        for stage, lr in ((_top(model), 2e-3), (half, 1e-3), ("all", 5e-4))
    ]
    return _plan("gradual-unfreezing", model, data, _solved(), *steps)


@technique
def from_scratch(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Train the same network from random weights; shows what the pretrained ones were worth."""
    phase = _tuned(data, train="all", lr=1e-3, epochs=5).model_copy(
        update={"layer_decay": 1.0, "batch_norm": "adapt"}
    )
    return _plan("from-scratch", model, data, phase, weights="random")


def find_technique(name: str) -> Technique:
    """Return a technique on the shelf, or somebody's own `module:function`.

    Raises:
        UserError: For an unknown name, or code that cannot be imported.
    """
    if name in TECHNIQUES:
        return TECHNIQUES[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise unknown_name_error("technique", name, TECHNIQUES)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        own: Technique = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"The technique {name} cannot be imported ({error}). Expected module:function that Python finds from here."
        ) from error
    return own


def make_technique_plan(name: str, model: ModelInfo, data: DatasetInfo) -> Plan:
    """Return the plan of a technique for this model and these images; raises `UserError` when it gives none."""
    made: object = find_technique(name)(model, data)
    if not isinstance(made, Plan):
        raise UserError(
            f"The technique {name} returned {type(made).__name__}. Expected a regraft Plan."
        )
    return made


def technique_summary(name: str) -> str:
    """Return the one sentence that says what a technique does."""
    return (TECHNIQUES[name].__doc__ or "").strip().splitlines()[0]


def suitable_resolution(model: ModelInfo, data: DatasetInfo) -> int:
    """Return the side that suits images of this size: small ones are enlarged some (BiT, Kolesnikov 2020), large ones follow the weights."""
    side = max(data.size)
    if model.fixed_resolution:
        return model.resolution
    return next(
        (target for limit, target in ((16, 80), (112, 96), (160, 128)) if side <= limit),
        model.resolution,
    )


def _plan(name: str, model: ModelInfo, data: DatasetInfo, *phases: Phase, **fields: Any) -> Plan:
    return Plan(
        backbone=model.name,
        technique=name,
        resolution=suitable_resolution(model, data),
        phases=phases,
        **fields,
    )


def _solved() -> Phase:
    return Phase(train="head", optimizer="lbfgs", l2=_L2)


def _tuned(data: DatasetInfo, train: str, lr: float, epochs: int) -> Phase:
    return Phase(
        train=train,
        optimizer="adamw",
        lr=lr,
        epochs=_epochs(data, epochs),
        batch_size=_batch(data, 64),
        weight_decay=0.01,
        layer_decay=0.8,
        schedule="one-cycle",
        label_smoothing=0.1,
        monitor="val_accuracy",
        batch_norm="keep",
    )


def _top(model: ModelInfo) -> str:
    return model.stages[-max(1, len(model.stages) // 4)]


def _epochs(data: DatasetInfo, usual: int) -> int:
    """Return more passes over few images and fewer over many, so that the steps stay of one order."""
    return max(
        1, round(usual * (2.0 if data.images < 500 else 1.0 if data.images < 20_000 else 0.6))
    )


def _batch(data: DatasetInfo, usual: int) -> int:
    return usual if data.images >= 500 else max(8, usual // 4)
