"""Labelled images: the dataset, its split into train, val and test, and the readers of every source."""

__all__ = [
    "ArrayImages",
    "Dataset",
    "DatasetInfo",
    "Images",
    "Split",
    "Unreadable",
    "make_dataset",
]
