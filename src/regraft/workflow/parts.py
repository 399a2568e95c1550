"""The images of one part on their way to the network: pixels kept, features kept, or both made as they are needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regraft import backbone, cache, views
from regraft.backbone import Backbone, Prefix, Suffix
from regraft.data import Dataset
from regraft.plan import Phase, Plan
from regraft.train import Batches
from regraft.train.batches import Reader
from regraft.watch import Watcher


@dataclass
class Part:
    """Train, val or test, with where its pixels and features are kept."""

    name: str
    data: Dataset
    home: Path
    watcher: Watcher
    used: dict[str, cache.Entry] = field(default_factory=dict)  # features, as they were first met

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each image."""
        return self.data.labels

    @cached_property
    def identities(self) -> NDArray[np.int64]:
        """Seed of each image's augmentation."""
        return views.identities(self.data)

    def pixels(self, model: Backbone) -> cache.Entry:
        """Return the stored pixels for the model's resolution."""
        wanted = (model.resolution, model.rules.interpolation)
        if wanted not in self._pixels:
            self._pixels[wanted] = cache.pixels(self.data, *wanted, self.home, self.watcher)
        return self._pixels[wanted]

    @cached_property
    def _pixels(self) -> dict[tuple[int, str], cache.Entry]:
        return {}

    def kept(self, model: Backbone, prefix: Prefix, digest: str, plan: Plan, view: views.View = views.PLAIN) -> cache.Entry:
        """Return the features that the frozen part gives, from the cache or into it."""
        what = f"extract {self.name}" + (f", view {view.number + 1}" if view.augment != "none" else "")
        entry = cache.activations(
            prefix, digest, self.pixels(model), self.identities, map(str, self.data.hashes), model.rules, plan.resolution, view,
            self.home, plan.precision, self.watcher, what,
        )  # fmt: skip
        self.used.setdefault(entry.name, entry)
        return entry

    def lacks(self, model: Backbone, prefix: Prefix, digest: str, plan: Plan, view: views.View = views.PLAIN) -> int:
        """Return the bytes that `kept` would have to write: none where there is nothing frozen, or the entry is there."""
        if prefix.is_empty:
            return 0
        hashes = map(str, self.data.hashes)
        name = cache.name_of(digest, self.pixels(model), self.identities, hashes, model.rules, plan.resolution, view, plan.precision)
        return 0 if (self.home / name).is_dir() else cache.size_of(prefix, len(self.data))

    def live(self, model: Backbone, prefix: Prefix, plan: Plan, augment: str, seed: int) -> Reader:
        """Return a reader that runs the frozen part anew for every batch; the epoch is the view."""
        images, quick = self.pixels(model), backbone.folded(prefix)

        def read(rows: NDArray[np.int64], epoch: int) -> tuple[Tensor, ...]:
            view = views.View(augment, seed, epoch) if augment != "none" else views.PLAIN
            outs = cache.run(quick, images, rows, self.identities, model.rules, plan.resolution, view, plan.precision)
            return tuple(out.float().clone() for out in outs)  # out of inference mode, so that autograd may keep them

        return read


def from_entries(entries: list[cache.Entry], device: torch.device) -> Reader:
    """Return a reader of kept features; the epochs take turns with the views."""

    def read(rows: NDArray[np.int64], epoch: int) -> tuple[Tensor, ...]:
        arrays = entries[epoch % len(entries)][rows]
        return tuple(torch.from_numpy(array).to(device).float() for array in arrays)

    return read


def readers(train: Part, val: Part, model: Backbone, prefix: Prefix, digest: str, plan: Plan, phase: Phase) -> tuple[Reader, Reader]:
    """Return how the two parts are read in a phase: from kept features where there is a frozen part and the disk has room."""
    augmented = phase.augment != "none"
    looks = phase.views if augmented else 1
    device = next(model.model.parameters()).device
    looked = [views.View(phase.augment, plan.seed, number) for number in range(looks)] if augmented else [views.PLAIN]
    needed = sum(train.lacks(model, prefix, digest, plan, view) for view in looked) + val.lacks(model, prefix, digest, plan)
    if prefix.is_empty or not cache.fits(needed, train.home):
        if not prefix.is_empty:
            train.watcher.say(
                f"Keeping the frozen part's output would take {needed / 1e6:,.0f} MB, more than {train.home} has; it is computed again every epoch."
            )
        return train.live(model, prefix, plan, phase.augment, plan.seed), val.live(model, prefix, plan, "none", plan.seed)
    entries = [train.kept(model, prefix, digest, plan, view) for view in looked]
    return from_entries(entries, device), from_entries([val.kept(model, prefix, digest, plan)], device)


@torch.inference_mode()
def logits(part: Part, model: Backbone, prefix: Prefix, suffix: Suffix, head: nn.Module, plan: Plan, keep: bool = True) -> NDArray[np.float32]:
    """Return what the finished network says of a part, `(n, classes)`, in eval mode and without augmentation."""
    suffix.eval()
    head.eval()
    device = next(model.model.parameters()).device
    digest = prefix.digest()
    if keep and not prefix.is_empty and cache.fits(part.lacks(model, prefix, digest, plan), part.home):
        read = from_entries([part.kept(model, prefix, digest, plan)], device)
    else:
        read = part.live(model, prefix, plan, "none", plan.seed)
    found = []
    batches = Batches(read, part.labels, 250, seed=None)
    for number, (features, _) in enumerate(batches):
        found.append(head(suffix(*features)).float().cpu().numpy())
        part.watcher.step(f"score {part.name}", number + 1, len(batches))
    return np.concatenate(found)
