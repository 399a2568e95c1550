"""A run folder as a function from images to classes, and many images through it: decoded ahead, written as they come.

Refuses to need anything but the folder: what made the run is gone by now.
"""

from regraft.predict.classifier import Classifier, Prediction, load
from regraft.predict.network import Network, restored
from regraft.predict.results import FORMATS, Results, cells, columns, format_of, row

__all__ = [
    "FORMATS",
    "Classifier",
    "Network",
    "Prediction",
    "Results",
    "cells",
    "columns",
    "format_of",
    "load",
    "restored",
    "row",
]
