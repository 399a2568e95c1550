"""regraft: which way should a pretrained network be carried over to my images, and was it worth it?

>>> import regraft
>>> run = regraft.fit("digits", technique="linear-probe")  # doctest: +SKIP
>>> regraft.load(run).predict(["five.png"])  # doctest: +SKIP
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from regraft.commands.api import (
    check,
    compare,
    embed,
    evaluate,
    export,
    fit,
    load,
    plan,
    predict,
    probe,
    report,
)
from regraft.errors import UserError

if TYPE_CHECKING:
    from regraft.commands.compare import Comparison
    from regraft.commands.probe import Probe
    from regraft.data.dataset import Dataset
    from regraft.inference.classifier import Classifier
    from regraft.plans.schema import Phase, Plan
    from regraft.runs.folder import Run
    from regraft.sklearn import TransferClassifier

# read when timm loads the hub's client; nothing reports home
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.2.0"
__all__ = [
    "Classifier",
    "Comparison",
    "Dataset",
    "Phase",
    "Plan",
    "Probe",
    "Run",
    "TransferClassifier",
    "UserError",
    "check",
    "compare",
    "embed",
    "evaluate",
    "export",
    "fit",
    "load",
    "plan",
    "predict",
    "probe",
    "report",
]

_LAZY = {  # loaded when they are asked for: most of them load torch or scikit-learn
    "Classifier": "regraft.inference.classifier",
    "Comparison": "regraft.commands.compare",
    "Dataset": "regraft.data.dataset",
    "Phase": "regraft.plans.schema",
    "Plan": "regraft.plans.schema",
    "Probe": "regraft.commands.probe",
    "Run": "regraft.runs.folder",
    "TransferClassifier": "regraft.sklearn",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
