"""Eight ways that freeze the whole network, for `growth.py`: probes of four depths, two heads, another rate, all depths side by side."""

from __future__ import annotations

from regraft.data.dataset import DatasetInfo
from regraft.plans.schema import ModelInfo, Phase, Plan
from regraft.plans.techniques import feature_extraction, linear_probe


def _probe(model: ModelInfo, data: DatasetInfo, stage: int) -> Plan:
    return linear_probe(model, data).model_copy(
        update={"until": model.stages[stage], "technique": f"probe-{model.stages[stage]}"}
    )


def probe_second_last(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Solve a head one stage before the end."""
    return _probe(model, data, -2)


def probe_third_last(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Solve a head two stages before the end."""
    return _probe(model, data, -3)


def probe_fourth_last(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Solve a head three stages before the end."""
    return _probe(model, data, -4)


def small_head(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Train a linear head for ten epochs."""
    return feature_extraction(model, data).model_copy(
        update={"head": "", "phases": (Phase(epochs=10, batch_size=128),)}
    )


def quick_head(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Train a linear head for ten epochs at a higher rate."""
    return feature_extraction(model, data).model_copy(
        update={"head": "", "phases": (Phase(epochs=10, batch_size=128, lr=1e-2),)}
    )


def deep_head(model: ModelInfo, data: DatasetInfo) -> Plan:
    """Train a head with a hidden layer for ten epochs."""
    return feature_extraction(model, data).model_copy(
        update={"phases": (Phase(epochs=10, batch_size=128),)}
    )


EIGHT = (
    "linear-probe",
    "multi-layer-probe",
    *(
        f"frozen_plans:{name}"
        for name in (
            "probe_second_last",
            "probe_third_last",
            "probe_fourth_last",
            "small_head",
            "quick_head",
            "deep_head",
        )
    ),
)
