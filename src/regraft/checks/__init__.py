"""What is wrong with labelled images: duplicates, doubtful labels, imbalance, odd files."""

from regraft.checks.duplicates import (
    ALIKE,
    SAME,
    NearDuplicate,
    exact,
    find_near_duplicates,
    leaks,
    near,
)
from regraft.checks.findings import Findings, verdict
from regraft.checks.labels import Suspects, suspects
from regraft.checks.oddities import (
    UNEVEN,
    ClassBalance,
    Outlier,
    balance,
    count_classes,
    find_odd_files,
    find_single_colour,
    find_unreadable,
    flat,
    odd,
)

__all__ = [
    "ALIKE",
    "SAME",
    "UNEVEN",
    "ClassBalance",
    "Findings",
    "NearDuplicate",
    "Outlier",
    "Suspects",
    "balance",
    "count_classes",
    "exact",
    "find_near_duplicates",
    "find_odd_files",
    "find_single_colour",
    "find_unreadable",
    "flat",
    "leaks",
    "near",
    "odd",
    "suspects",
    "verdict",
]
