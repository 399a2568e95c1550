"""Labelled images: the dataset, its split, and a reader for each source."""

from regraft.data.dataset import Columns, Dataset, DatasetInfo, make_dataset
from regraft.data.images import ArrayImages, Images, Unreadable
from regraft.data.split import Split

__all__ = [
    "ArrayImages",
    "Columns",
    "Dataset",
    "DatasetInfo",
    "Images",
    "Split",
    "Unreadable",
    "make_dataset",
]
