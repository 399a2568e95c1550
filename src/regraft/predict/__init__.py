"""A run folder as a function from images to classes, and files of predictions written by it.

Refuses to need anything but the folder: the objects that made the run are gone.
"""

from regraft.predict.classifier import Classifier, Prediction, load
from regraft.predict.network import Network, restored
from regraft.predict.results import FORMATS, PredictionJob, Results, format_of, row
from regraft.predict.storage import cells, columns

__all__ = [
    "FORMATS",
    "Classifier",
    "Network",
    "Prediction",
    "PredictionJob",
    "Results",
    "cells",
    "columns",
    "format_of",
    "load",
    "restored",
    "row",
]
