"""The images of one part on their way to the network: pixels kept, features kept, or both made as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regraft.data.dataset import Dataset
from regraft.features.batches import Batches, Reader
from regraft.features.extract import (
    ModelInputs,
    cached_pixels,
    entry_bytes,
    entry_name,
    extract_features,
    run_prefix,
)
from regraft.features.store import Entry, has_room
from regraft.models.backbone import Backbone
from regraft.models.cut import Prefix, Suffix
from regraft.models.optimize import cast_bfloat16, fuse_conv_bn
from regraft.models.transforms import NO_AUGMENTATION, AugmentedView, sample_ids
from regraft.plans.schema import Phase, Plan
from regraft.workflow.keeping import decide
from regraft.workflow.settings import Settings


@dataclass
class Part:
    """Train, val or test, with where its pixels and features are kept."""

    name: str
    data: Dataset
    settings: Settings
    used: dict[str, Entry] = field(default_factory=dict)  # features, as they were first met

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each image."""
        return self.data.labels

    @cached_property
    def identities(self) -> NDArray[np.int64]:
        """Seed of each image's augmentation."""
        return sample_ids(self.data)

    def pixels(self, model: Backbone) -> Entry:
        """Return the stored pixels for the model's resolution."""
        wanted = (model.resolution, model.rules.interpolation)
        if wanted not in self._pixels:
            self._pixels[wanted] = cached_pixels(
                self.data, *wanted, self.settings.home, self.settings.watcher
            )
        return self._pixels[wanted]

    @cached_property
    def _pixels(self) -> dict[tuple[int, str], Entry]:
        return {}

    def look(
        self, model: Backbone, plan: Plan, view: AugmentedView = NO_AUGMENTATION
    ) -> ModelInputs:
        """Return the images as the model sees them."""
        return ModelInputs(
            self.pixels(model),
            self.identities,
            self.data.hashes,
            model.rules,
            model.resolution,
            view,
            plan.precision,
        )

    def kept(
        self,
        model: Backbone,
        prefixes: Sequence[tuple[Prefix, str]],
        plan: Plan,
        view: AugmentedView = NO_AUGMENTATION,
    ) -> list[Entry]:
        """Return the features that each frozen part gives, from the cache or in one pass into it."""
        what = f"extract {self.name}" + (
            f", view {view.number + 1}" if view.augment != "none" else ""
        )
        settings = self.settings
        entries = extract_features(
            prefixes,
            self.look(model, plan, view),
            settings.home,
            settings.watcher,
            what,
            settings.compile,
        )
        for entry in entries:
            self.used.setdefault(entry.name, entry)
        return entries

    def lacks(
        self,
        model: Backbone,
        prefix: Prefix,
        digest: str,
        plan: Plan,
        view: AugmentedView = NO_AUGMENTATION,
    ) -> int:
        """Return the bytes that `kept` would have to write: none where there is nothing frozen, or the entry is there."""
        if prefix.is_empty:
            return 0
        name = entry_name(digest, self.look(model, plan, view))
        there = any((self.settings.home / one).is_dir() for one in (name, f"{name}-32"))
        return 0 if there else entry_bytes(prefix, len(self.data))

    def live(
        self, model: Backbone, prefix: Prefix, plan: Plan, augment: str, seed: int, looks: int = 0
    ) -> Reader:
        """Return a reader that runs the frozen part anew for every batch; every epoch is another view, or they take turns with `looks` views."""
        quick = fuse_conv_bn(prefix)
        if plan.precision == "bfloat16":
            quick = cast_bfloat16(quick)
        plain = self.look(model, plan)

        def read(rows: NDArray[np.int64], epoch: int) -> tuple[Tensor, ...]:
            view = (
                AugmentedView(augment, seed, epoch % looks if looks else epoch)
                if augment != "none"
                else NO_AUGMENTATION
            )
            outs = run_prefix(quick, device_of(model), replace(plain, view=view), rows)
            return tuple(
                out.float().clone() for out in outs
            )  # out of inference mode, so that autograd may keep them

        return read


def device_of(model: Backbone) -> torch.device:
    """Return where the network is."""
    return next(model.model.parameters()).device


def from_entries(entries: list[Entry], device: torch.device) -> Reader:
    """Return a reader of kept features; the epochs take turns with the views."""

    def read(rows: NDArray[np.int64], epoch: int) -> tuple[Tensor, ...]:
        arrays = entries[epoch % len(entries)][rows]
        return tuple(torch.from_numpy(array).to(device).float() for array in arrays)

    return read


def readers(
    train: Part, val: Part, model: Backbone, prefix: Prefix, digest: str, plan: Plan, phase: Phase
) -> tuple[Reader, Reader]:
    """Return how the two parts are read in a phase: from kept features where there is a frozen part and keeping them pays."""
    augmented = phase.augment != "none"
    looks = phase.looks
    settings = train.settings
    looked = (
        [AugmentedView(phase.augment, plan.seed, number) for number in range(looks)]
        if augmented
        else [NO_AUGMENTATION]
    )
    if prefix.is_empty:
        return train.live(model, prefix, plan, phase.augment, plan.seed), val.live(
            model, prefix, plan, "none", plan.seed
        )
    missing = sum(train.lacks(model, prefix, digest, plan, view) for view in looked) + val.lacks(
        model, prefix, digest, plan
    )
    if missing or settings.keep == "never":
        decision = decide(
            model, prefix, plan, phase, (len(train.data), len(val.data)), missing, settings
        )
        settings.watcher.say(decision.why)
        if not decision.kept:
            return train.live(model, prefix, plan, phase.augment, plan.seed, looks), val.live(
                model, prefix, plan, "none", plan.seed
            )
    named = [(prefix, digest)]
    if augmented and phase.views == 1 < phase.epochs:
        settings.watcher.say(
            "Each image is seen in one augmented view, since the frozen part computes it once; views = 4 in a phase gives it four."
        )
    entries = [train.kept(model, named, plan, view)[0] for view in looked]
    return from_entries(entries, device_of(model)), from_entries(
        val.kept(model, named, plan), device_of(model)
    )


@torch.inference_mode()
def logits(
    part: Part,
    model: Backbone,
    prefix: Prefix,
    suffix: Suffix,
    head: nn.Module,
    plan: Plan,
    keep: bool = True,
) -> NDArray[np.float32]:
    """Return what the finished network says of a part, `(n, classes)`, in eval mode and without augmentation."""
    suffix.eval()
    head.eval()
    digest, settings = prefix.digest(), part.settings
    missing = part.lacks(model, prefix, digest, plan)
    if (
        keep
        and not prefix.is_empty
        and settings.keep != "never"
        and (not missing or has_room(missing, settings.home))
    ):
        read = from_entries(part.kept(model, [(prefix, digest)], plan), device_of(model))
    else:
        read = part.live(model, prefix, plan, "none", plan.seed)
    found = []
    batches = Batches(read, part.labels, 250, seed=None)
    for number, (features, _) in enumerate(batches):
        found.append(head(suffix(*features)).float().cpu().numpy())
        settings.watcher.step(f"score {part.name}", number + 1, len(batches))
    return np.concatenate(found)
