"""A source model that can be cut anywhere, with its input rules.

Names, depth and weights are timm's, and the cut is found by dataflow: nothing depends on a family.
"""

from regraft.backbone.compiled import PAYS_FROM, compiled, has_compiler, multiply_adds
from regraft.backbone.cutting import cut, width
from regraft.backbone.fold import folded, halved
from regraft.backbone.halves import Prefix, Suffix
from regraft.backbone.joint import joined
from regraft.backbone.ladder import Place, ladder, work
from regraft.backbone.layers import alike, depth, earliest
from regraft.backbone.source import (
    Backbone,
    check_name,
    facts,
    input_rules,
    load,
    names,
    restore,
    with_weights,
)
from regraft.backbone.weights import EMBEDDED, build, classifier

__all__ = [
    "EMBEDDED",
    "PAYS_FROM",
    "Backbone",
    "Place",
    "Prefix",
    "Suffix",
    "alike",
    "build",
    "check_name",
    "classifier",
    "compiled",
    "cut",
    "depth",
    "earliest",
    "facts",
    "folded",
    "halved",
    "has_compiler",
    "input_rules",
    "joined",
    "ladder",
    "load",
    "multiply_adds",
    "names",
    "restore",
    "width",
    "with_weights",
    "work",
]
