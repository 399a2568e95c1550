"""A source model that can be cut anywhere, with its input rules.

Refuses to know families: names, depth and weights are timm's, the cut is found by dataflow.
"""

from regraft.backbone.fold import folded
from regraft.backbone.halves import Prefix, Suffix
from regraft.backbone.ladder import Place, cut, depth, earliest, ladder
from regraft.backbone.source import EMBEDDED, Backbone, check_name, load, names, restore

__all__ = ["EMBEDDED", "Backbone", "Place", "Prefix", "Suffix", "check_name", "cut", "depth", "earliest", "folded", "ladder", "load", "names", "restore"]
