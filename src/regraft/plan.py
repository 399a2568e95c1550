"""What a run will do: the plan, its phases, and how both are read and written."""

from regraft.plan_head import LAYERS, Layer, head_layers
from regraft.plan_schema import (
    AUGMENTATIONS,
    L2_PATH,
    WORDS,
    InputRules,
    ModelFacts,
    Phase,
    Plan,
)
from regraft.plan_toml import changed, parse, read, text, values, write

__all__ = [
    "AUGMENTATIONS",
    "L2_PATH",
    "LAYERS",
    "WORDS",
    "InputRules",
    "Layer",
    "ModelFacts",
    "Phase",
    "Plan",
    "changed",
    "head_layers",
    "parse",
    "read",
    "text",
    "values",
    "write",
]
