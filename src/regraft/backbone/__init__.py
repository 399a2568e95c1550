"""A source model that can be cut anywhere, with its input rules.

Refuses to know families: names, depth and weights are timm's, the cut is found by dataflow.
"""

from regraft.backbone.compiled import PAYS_FROM, compiled, has_compiler, multiply_adds
from regraft.backbone.fold import folded, halved
from regraft.backbone.halves import Prefix, Suffix
from regraft.backbone.joint import joined
from regraft.backbone.ladder import Place, alike, cut, depth, earliest, ladder, width, work
from regraft.backbone.source import Backbone, check_name, facts, load, names, restore
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
    "joined",
    "ladder",
    "load",
    "multiply_adds",
    "names",
    "restore",
    "width",
    "work",
]
