"""What is wrong with labelled images before anybody trains on them: duplicates, suspected labels, imbalance, odd files.

Refuses networks and files: hashes, pixels, features, labels and sizes come in, findings as plain data go out.
"""

from regraft.checks.duplicates import ALIKE, SAME, exact, leaks, near
from regraft.checks.labels import Suspects, suspects
from regraft.checks.oddities import UNEVEN, balance, flat, odd

__all__ = [
    "ALIKE",
    "SAME",
    "UNEVEN",
    "Suspects",
    "balance",
    "exact",
    "flat",
    "leaks",
    "near",
    "odd",
    "suspects",
]
