"""What a probe measures with: a clock, the speed of a network, the free memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from regraft.features.policy import time_forward_pass
from regraft.models.network import Cut
from regraft.models.weights import source_classifier
from regraft.probing.networks import SourceHead
from regraft.system.hardware import free_memory

_MOST_FEATURES = 8192  # concatenated
_FEWEST_FEATURES = 64


@dataclass(frozen=True)
class Instruments:
    """What a probe measures with.

    Args:
        clock: Returns the time in seconds.
        time_forward: Returns the seconds of one image through a frozen part.
        free_memory: Returns the free bytes.
        find_head: Returns the class layer that came with a backbone's weights, see `ProbeNetworks`.
    """

    clock: Callable[[], float] = time.perf_counter
    time_forward: Callable[[Cut], float] = time_forward_pass
    free_memory: Callable[[], float] = free_memory
    find_head: Callable[[str, str], SourceHead | None] = source_classifier


def most_features(images: int, memory: float) -> int:
    """Return how many features may be concatenated.

    They and their products fit into half of the free memory.

    Args:
        images: Number of training images.
        memory: Free bytes.
    """
    most = _MOST_FEATURES
    while most > _FEWEST_FEATURES and 16 * (images * most + most * most) > memory / 2:
        most //= 2
    return most
