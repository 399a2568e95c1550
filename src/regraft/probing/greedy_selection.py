"""Which few places to take side by side: one after the other, each time the one that helps most.

Refuses validation images: places are judged on a fifth of the training images, so that validation stays fair to what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MOST = 4  # places
_HELD_OUT = 5  # one training image in five judges
_FEWEST = 2  # images to fit to
_RIDGES = (0.01, 0.1, 1.0)


def select_greedily(places: Sequence[Tensor], labels: Tensor, classes: int) -> list[int]:
    """Return the numbers of up to four places, in the order in which they were chosen.

    It ends when no further one helps by more than one standard error of the difference on the same images.

    A subset is judged by a ridge regression from its features to one-hot labels, fitted to four fifths of the images and scored on the rest. All
    subsets share one Gram matrix, so each costs one small solve. With hardly any training images it is the last place alone.

    Args:
        places: Features of each place, `(n, d)` each.
        labels: Class numbers `(n,)`.
        classes: Number of classes.
    """
    judge = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)) % _HELD_OUT == 0
    if int((~judge).sum()) < _FEWEST:
        return [len(places) - 1]
    x = torch.cat(list(places), dim=1)
    mean, std = x[~judge].mean(dim=0), x[~judge].std(dim=0).clamp(min=1e-6)
    x = (x - mean) / std
    fit, held = x[~judge], x[judge]
    targets = torch.nn.functional.one_hot(labels[~judge], classes).float()
    shares = targets.mean(dim=0)
    gram, cross = fit.T @ fit / len(fit), fit.T @ (targets - shares) / len(fit)
    ends = torch.tensor([one.shape[1] for one in places]).cumsum(0).tolist()
    columns = [torch.arange(end - one.shape[1], end) for one, end in zip(places, ends, strict=True)]

    def right(numbers: list[int], ridge: float) -> Tensor:
        mine = torch.cat([columns[number] for number in numbers])
        factor = torch.linalg.cholesky(gram[mine][:, mine] + ridge * torch.eye(len(mine)))
        said = held[:, mine] @ torch.cholesky_solve(cross[mine], factor) + shares
        return said.argmax(dim=1) == labels[judge]

    first, ridge = max(
        ((number, ridge) for number in range(len(places)) for ridge in _RIDGES),
        key=lambda one: int(right([one[0]], one[1]).sum()),
    )
    found, reached = [first], right([first], ridge)
    while len(found) < min(_MOST, len(places)):
        tried = {
            number: right([*found, number], ridge)
            for number in range(len(places))
            if number not in found
        }
        best = max(tried, key=lambda number: int(tried[number].sum()))
        won, lost = int((tried[best] & ~reached).sum()), int((reached & ~tried[best]).sum())
        if won - lost <= (won + lost) ** 0.5:
            break
        found.append(best)
        reached = tried[best]
    return found
