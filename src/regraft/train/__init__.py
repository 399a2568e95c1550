"""Make a head, fit the trained part and the head; everything this room is given is trained.

Refuses to see a frozen module or a test image. Import `train.tune` for training by batches: it alone loads Lightning.
"""

from regraft.train import head, solve
from regraft.train.batches import Batches

__all__ = ["Batches", "head", "solve"]
