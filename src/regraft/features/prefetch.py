"""What several runs need of one network, computed in one pass before they begin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from regraft.features.parts import OpenedParts
from regraft.features.policy import CachePolicy
from regraft.features.reader import FrozenFeatures
from regraft.features.store import has_room
from regraft.models.backbone import Backbone
from regraft.models.cut import cut_backbone
from regraft.models.network import Cut
from regraft.models.pool import BackbonePool, source_key
from regraft.models.transforms import Preprocess
from regraft.plans.schema import Plan


def prefetch_features(
    parts: OpenedParts,
    plans: Sequence[Plan],
    names: Sequence[str],
    policy: CachePolicy,
    pool: BackbonePool,
) -> None:
    """Fill the cache with the plain outputs of frozen parts that several plans take of a network.

    What is not surely worth caching is left to each run's own decision.

    Args:
        parts: The images.
        plans: What the runs will do.
        names: Names of the parts.
        policy: Decides what is cached.
        pool: Backbones.
    """
    if policy.options.keep == "never":
        return
    for group in _by_network(plans):
        if len(group) < 2:
            continue
        backbone = pool.read(group[0])
        cuts = list(_first_cuts(backbone, group))
        for name in names:
            _prefetch_part(parts, name, cuts, policy, group[0].backbone)


def _prefetch_part(
    parts: OpenedParts, name: str, cuts: Sequence[Cut], policy: CachePolicy, backbone: str
) -> None:
    part = parts[name]
    wanted = []
    needed = 0
    for cut in cuts:
        missing = FrozenFeatures(part, cut).missing_bytes()
        if policy.surely(missing):
            wanted.append(cut)
            needed += missing
    if len(wanted) > 1 and has_room(needed, policy.options.dir):
        part.runtime.reporter.log(
            f"Computing {len(wanted)} frozen parts of {backbone} in one pass over {name}."
        )
        part.extract(wanted)


def _by_network(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Return the plans grouped by source weights, and by how their frozen parts see images."""
    groups: dict[tuple[object, ...], list[Plan]] = {}
    for plan in plans:
        groups.setdefault((*source_key(plan), plan.precision), []).append(plan)
    return list(groups.values())


def _first_cuts(backbone: Backbone, plans: Sequence[Plan]) -> Iterator[Cut]:
    """Yield the different frozen parts of first phases.

    Later phases may stand on weights that are not trained yet.
    """
    seen = set()
    preprocess = Preprocess(backbone.rules, backbone.resolution)
    device = next(backbone.model.parameters()).device
    for plan in plans:
        phase = plan.phases[0]
        if phase.augment != "none" or plan.resolution_of(phase) != plan.resolution:
            continue
        taken = plan.stages_taken
        frozen, trained = cut_backbone(backbone, phase.train, taken, plan.flattens)
        cut = Cut(frozen, trained, preprocess, plan.precision, device)
        if not cut.is_empty and cut.digest not in seen:
            seen.add(cut.digest)
            yield cut
