"""What several rows of a comparison need of one network, computed in one pass through it before they begin."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.data.dataset import Dataset
from regraft.features.store import has_room
from regraft.models.backbone import Backbone
from regraft.models.cut import Prefix
from regraft.models.layers import cut_backbone
from regraft.plans.schema import Plan
from regraft.workflow.keeping import SURELY
from regraft.workflow.parts import Part
from regraft.workflow.settings import Settings
from regraft.workflow.story import loaded


class Shelf:
    """The network that was loaded last, so that rows in a row that want the same one have it made once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.networks: dict[tuple[object, ...], Backbone] = {}

    def of(self, plan: Plan) -> Backbone | None:
        """Return the network of a plan as it comes, or None where the plan would change it; digests prove that it stays so."""
        if any(phase.train != "head" for phase in plan.phases):
            return None
        return self._kept(_network(plan), plan)

    def like(self, plan: Plan) -> Backbone:
        """Return a network of a plan's kind to be given other weights."""
        return self._kept(
            (plan.backbone, plan.resolution), plan.model_copy(update={"weights": "random"})
        )

    def _kept(self, key: tuple[object, ...], plan: Plan) -> Backbone:
        if key not in self.networks:
            self.networks = {key: loaded(plan, self.settings)}
        return self.networks[key]


def compute_shared(
    data: Dataset, plans: Sequence[Plan], names: Sequence[str], settings: Settings
) -> None:
    """Fill the cache with the plain outputs of all frozen parts that at least two plans take from the same network.

    What does not surely pay to be kept is left to each row's own decision.

    Args:
        data: The images.
        plans: What the rows will do.
        names: Parts of the split.
        settings: Where entries are kept, and whether.
    """
    if settings.keep == "never":
        return
    split = settings.split(data)
    for members in _by_network(plans):
        if len(members) < 2:
            continue
        model = loaded(members[0], settings)
        found = _prefixes(model, members)
        for name in names:
            part = Part(name, data.take(split[name]), settings)
            missing = {
                digest: part.lacks(model, prefix, digest, members[0])
                for digest, prefix in found.items()
            }
            wanted = [
                (found[digest], digest)
                for digest, needed in missing.items()
                if 0 < needed <= SURELY
            ]
            if len(wanted) > 1 and has_room(
                sum(missing[digest] for _, digest in wanted), settings.home
            ):
                settings.watcher.say(
                    f"Computing {len(wanted)} frozen parts of {members[0].backbone} in one pass over {name}."
                )
                part.kept(model, wanted, members[0])


def _by_network(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Return the plans grouped by the weights that their frozen parts have, and by how these see images."""
    groups: dict[tuple[object, ...], list[Plan]] = {}
    for plan in plans:
        groups.setdefault((*_network(plan), plan.precision), []).append(plan)
    return list(groups.values())


def _network(plan: Plan) -> tuple[object, ...]:
    return (
        plan.backbone,
        plan.weights,
        plan.resolution,
        plan.seed if plan.weights == "random" else None,
    )


def _prefixes(model: Backbone, plans: Sequence[Plan]) -> dict[str, Prefix]:
    """Return the frozen parts of the first phases by digest; later phases may stand on weights that are not trained yet."""
    found = {}
    for plan in plans:
        first = plan.phases[0]
        if first.augment == "none" and plan.resolution_of(first) == plan.resolution:
            prefix, _ = cut_backbone(model, first.train, plan.stages_taken, plan.flattens)
            if not prefix.is_empty:
                found[prefix.digest()] = prefix
    return found
