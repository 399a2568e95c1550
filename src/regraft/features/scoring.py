"""The logits of a finished network on the images of one part."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from regraft.features.batches import Batches
from regraft.features.parts import PartImages
from regraft.features.policy import CachePolicy
from regraft.features.reader import FrozenFeatures
from regraft.models.network import Cut, TransferNetwork

_BATCH = 250


@torch.inference_mode()
def compute_logits(
    network: TransferNetwork, cut: Cut, images: PartImages, policy: CachePolicy
) -> NDArray[np.float32]:
    """Return logits `(n, classes)` in eval mode, without augmentation.

    Args:
        network: The network.
        cut: Its parts by what is frozen throughout, `network.final_cut()`.
        images: The part.
        policy: Decides whether the frozen part's output goes through the cache.
    """
    cut.trained.eval()
    network.head.eval()
    features = FrozenFeatures(images, cut)
    reader = features.cached() if policy.for_scoring(features) else features.live()
    batches = Batches(reader, images.labels, _BATCH, seed=None)
    reporter = images.runtime.reporter
    logits = []
    for number, (tensors, _) in enumerate(batches):
        logits.append(network.logits(cut.trained, tensors).float().cpu().numpy())
        reporter.progress(f"score {images.name}", number + 1, len(batches))
    return np.concatenate(logits)
