"""Labelled images: the dataset, its split into train, val and test, and the readers of sources."""

from regraft.data.dataset import Dataset, DatasetInfo, make_dataset
from regraft.data.images import ArrayImages, Images, Unreadable
from regraft.data.split import Split

__all__ = [
    "ArrayImages",
    "Dataset",
    "DatasetInfo",
    "Images",
    "Split",
    "Unreadable",
    "make_dataset",
]
