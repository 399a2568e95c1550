from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from regraft.train import head
from sklearn.linear_model import LogisticRegression
from torch import nn

from regraft.features.batches import Batches
from regraft.models.backbone import load_backbone
from regraft.models.cut import cut_backbone
from regraft.models.layers import distance_to_head
from regraft.plans.schema import Phase
from regraft.training import trainer
from regraft.training.linear import CrossEntropy, LabelledFeatures, fit_logistic
from regraft.training.module import TransferModule, learning_rate_factor, parameter_groups
from regraft.training.trainer import FitResult


def blobs(n: int, d: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (classes, d))
    labels = rng.integers(0, classes, n)
    features = (centres[labels] + rng.normal(0, 2.5, (n, d))) * rng.uniform(
        0.1, 30, d
    ) + rng.normal(0, 5, d)
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def test_the_solved_head_agrees_with_scikit_learn() -> None:
    worst = 0.0
    for seed, l2 in ((0, 1e-3), (1, 1e-2), (2, 1e-1)):
        train = LabelledFeatures(*blobs(600, 40, 5, seed))
        val = LabelledFeatures(*blobs(400, 40, 5, seed + 50))
        probe = fit_logistic(train, val, CrossEntropy(5), (l2,))
        mean, std = train.features.mean(0), train.features.std(0)
        reference = LogisticRegression(C=1 / (600 * l2), max_iter=2000, tol=1e-8).fit(
            ((train.features - mean) / std).numpy(), train.labels.numpy()
        )
        wanted = torch.tensor(reference.predict_proba(((val.features - mean) / std).numpy()))
        got = probe.layer(val.features).softmax(dim=1).detach()
        worst = max(worst, float((wanted - got).abs().max()))
    assert worst < 2e-2  # of a probability; scikit-learn goes on in double precision


def test_the_best_l2_is_chosen_on_validation_and_the_whole_path_is_kept() -> None:
    train = LabelledFeatures(*blobs(80, 200, 4, 0))
    val = LabelledFeatures(*blobs(500, 200, 4, 1))
    probe = fit_logistic(train, val, CrossEntropy(4), (1e-4, 1e-2, 1.0))
    assert [point.l2 for point in probe.history] == [1.0, 1e-2, 1e-4]
    best = max(probe.history, key=lambda point: (point.val_accuracy, -point.val_loss))
    assert probe.l2 == best.l2
    assert probe.chosen == best
    accuracy = float((probe.layer(val.features).argmax(1) == val.labels).float().mean())
    assert accuracy == pytest.approx(best.val_accuracy, abs=0.003)
    keys = ["l2", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    assert list(best.to_json()) == keys


def test_class_weights_and_smoothing_give_the_loss_of_pytorch() -> None:
    logits, labels = torch.randn(50, 4), torch.arange(50) % 4
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    for class_weights, smoothing in ((None, 0.0), (weights, 0.0), (None, 0.2), (weights, 0.2)):
        coefficients = CrossEntropy(4, class_weights, smoothing).coefficients(labels)
        wanted = nn.functional.cross_entropy(
            logits, labels, class_weights, label_smoothing=smoothing
        )
        assert -(coefficients * logits.log_softmax(dim=1)).sum() == pytest.approx(float(wanted))


def test_class_weights_balance_or_follow_the_names() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    assert head.class_weights("none", labels, ("a", "b")) is None
    balanced = head.class_weights("auto", labels, ("a", "b"))
    assert balanced is not None
    assert float(balanced[1] / balanced[0]) == pytest.approx(9)
    named = head.class_weights({"b": 3.0}, labels, ("a", "b"))
    assert named is not None
    assert float(named[1] / named[0]) == pytest.approx(3)
    assert float(named[labels].mean()) == pytest.approx(1)
    absent = head.class_weights("auto", labels, ("a", "b", "none of these"))
    assert absent is not None
    assert torch.isfinite(absent).all()


def test_a_head_has_the_layers_of_its_line_and_starts_undecided() -> None:
    made = head.make("flatten, bn, dense 16 relu, dropout 0.5, ln, dense 8 gelu", 32, 3, 0)
    kinds = [type(layer).__name__ for layer in made]
    assert kinds == [
        "BatchNorm1d",
        "Linear",
        "ReLU",
        "Dropout",
        "LayerNorm",
        "Linear",
        "GELU",
        "Linear",
    ]
    assert torch.equal(made.eval()(torch.randn(4, 32)), torch.zeros(4, 3))
    again = head.make("flatten, bn, dense 16 relu, dropout 0.5, ln, dense 8 gelu", 32, 3, 0)
    assert torch.equal(made[1].weight, again[1].weight)


def test_batches_see_every_image_once_an_epoch_in_an_order_that_the_seed_decides() -> None:
    def read(rows: np.ndarray, epoch: int) -> tuple[torch.Tensor, ...]:
        return (torch.from_numpy(rows),)

    labels = np.arange(50)
    made, same, other = (Batches(read, labels, 16, seed) for seed in (1, 1, 2))
    orders = []
    for batches in (made, same, other):
        seen = torch.cat([features[0] for features, _ in batches])
        assert sorted(seen.tolist()) == list(range(50))
        orders.append(seen.tolist())
    assert orders[0] == orders[1] != orders[2]
    made.epoch = 1
    assert torch.cat([features[0] for features, _ in made]).tolist() != orders[0]
    assert all(torch.equal(features[0], targets) for features, targets in made)
    assert torch.cat(
        [features[0] for features, _ in Batches(read, labels, 16, None)]
    ).tolist() == list(range(50))
    assert [len(targets) for _, targets in Batches(read, np.arange(33), 16, 0)] == [
        16,
        16,
    ]  # a lone image cannot be normalised


def module(train: str, **fields: object) -> TransferModule:
    source = load_backbone("test_resnet", "random", 32)
    _, suffix = cut_backbone(source, train)
    return TransferModule(
        suffix,
        head.make("bn, dense 8 relu", 96, 3, 0),
        Phase(train=train, **fields),
        0,
        distance_to_head(source),
    )  # type: ignore[arg-type]


def test_every_parameter_is_in_exactly_one_group_and_norms_and_biases_do_not_decay() -> None:
    seen = 0
    for train in ("head", "layer4", "layer2", "all"):
        made = module(train, weight_decay=0.1, layer_decay=0.5, lr=1.0)
        found = parameter_groups(made, made.phase)
        counts = Counter(id(parameter) for group in found for parameter in group["params"])
        assert counts == Counter(id(parameter) for parameter in made.parameters()), train
        for group in found:
            decays = {parameter.ndim > 1 for parameter in group["params"]}
            assert decays == {group["weight_decay"] > 0}
        rates = sorted({group["lr"] for group in found}, reverse=True)
        assert rates[0] == 1.0
        assert all(later == earlier / 2 for earlier, later in pairwise(rates))
        seen += 1
    assert seen == 4


def test_the_rate_warms_up_and_falls_as_the_schedule_says() -> None:
    for schedule, end in (("constant", 1.0), ("cosine", 0.0), ("warmup-cosine", 0.0)):
        phase = Phase(schedule=schedule, warmup=0.1)
        course = [learning_rate_factor(step, 100, phase) for step in range(101)]
        assert course[0] < 0.2
        assert max(course) == pytest.approx(1.0, abs=0.01)
        assert course[-1] == pytest.approx(end, abs=0.01)
        assert all(0 <= value <= 1 for value in course)


def test_mixing_keeps_shapes_and_the_share_says_how_much_is_whose() -> None:
    torch.manual_seed(0)
    images = (torch.zeros(8, 3, 16, 16) + torch.arange(8.0).view(8, 1, 1, 1),)
    for fields in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        for _ in range(10):
            mixed, other, share = trainer._mixed(images, Phase(train="all", **fields))  # type: ignore[arg-type]
            wanted = (
                share * images[0].mean((1, 2, 3)) + (1 - share) * images[0].mean((1, 2, 3))[other]
            )
            assert torch.allclose(mixed[0].mean((1, 2, 3)), wanted, atol=1e-4)
    assert trainer._mixed(images, Phase())[2] == 1.0


def test_kept_statistics_stay_and_adapted_ones_move() -> None:
    for policy in ("keep", "adapt"):
        made = module("layer4", batch_norm=policy)
        statistics = [m for m in made.suffix.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [m.running_mean.clone() for m in statistics if m.running_mean is not None]
        made.train()
        made._trainer = None  # type: ignore[assignment]
        made.__class__ = type("Detached", (TransferModule,), {"current_epoch": 0})
        made.on_train_epoch_start()
        prefix, _ = cut_backbone(load_backbone("test_resnet", "random", 32), "layer4")
        made(*(value.clone() for value in prefix(torch.randn(8, 3, 32, 32))))
        moved = [
            not torch.equal(m.running_mean, old)
            for m, old in zip(statistics, before, strict=True)
            if m.running_mean is not None
        ]
        assert moved
        assert all(moved) == (policy == "adapt")


def short(
    tmp_path: Path, precision: str = "float32", **fields: object
) -> tuple[TransferModule, FitResult, float]:
    """Train a few epochs on random features; returns the module, what was left, and the validation loss of its weights."""
    from torch.nn import functional

    from regraft.training.trainer import fit_phase

    made = TransferModule(
        nn.Identity(),
        head.make("dense 16 relu", 8, 3, 0),
        Phase(epochs=4, lr=0.05, batch_size=16, **fields),
        0,
        lambda _: 1,
    )  # type: ignore[arg-type]
    features, labels = blobs(96, 8, 3, 0)
    batches = [
        Batches(lambda rows, epoch: (features[rows],), labels.numpy(), 16, seed)
        for seed in (0, None)
    ]
    left = fit_phase(made, *batches, tmp_path, 0, precision)
    with torch.no_grad():
        loss = float(functional.cross_entropy(made(features), labels))
    return made, left, loss


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ema": 0.9},
        {"monitor": "val_loss", "patience": 1},
        {"ema": 0.5, "monitor": "val_loss", "gradient_clip": 1.0},
    ],
)
def test_what_is_kept_is_what_was_judged_best(tmp_path: Path, fields: dict[str, object]) -> None:
    _, left, loss = short(tmp_path, **fields)
    assert loss == pytest.approx(left.history[left.best_epoch]["val_loss"], rel=1e-4)
    best = (
        min(row["val_loss"] for row in left.history)
        if "monitor" in fields
        else max(row["val_accuracy"] for row in left.history)
    )
    assert left.history[left.best_epoch][str(fields.get("monitor", "val_accuracy"))] == best


def test_means_over_an_epoch_are_those_of_all_its_images_at_once() -> None:
    rng = torch.Generator().manual_seed(0)
    seen = 0
    for sizes in ([5], [4, 4, 3], [1, 7, 2, 1], [64, 64, 10]):
        logits, targets = (
            torch.randn(sum(sizes), 4, generator=rng),
            torch.randint(0, 4, (sum(sizes),), generator=rng),
        )
        means = trainer._Means()
        assert means.of("val") == {}
        for some, wanted in zip(logits.split(sizes), targets.split(sizes), strict=True):
            means.add(torch.nn.functional.cross_entropy(some, wanted), some, wanted)
        loss, right = (
            torch.nn.functional.cross_entropy(logits, targets),
            (logits.argmax(dim=1) == targets).float().mean(),
        )
        assert means.of("val") == pytest.approx(
            {"val_loss": float(loss), "val_accuracy": float(right)}, rel=1e-5
        )
        seen += 1
    assert seen == 4


def test_averaged_weights_differ_from_the_last_ones(tmp_path: Path) -> None:
    one, other = short(tmp_path / "a")[0], short(tmp_path / "b", ema=0.9)[0]
    assert not torch.equal(one.head[0].weight, other.head[0].weight)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_optimizer_trains_with_clipped_gradients_in_both_precisions(
    tmp_path: Path, optimizer: str, precision: str
) -> None:
    before = head.make("dense 16 relu", 8, 3, 0)
    made, left, _ = short(tmp_path, precision, optimizer=optimizer, gradient_clip=0.5)
    assert not torch.equal(made.head[0].weight, before[0].weight)
    assert left.without_gradient == []


def test_the_network_stays_on_its_device_when_training_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(self: object) -> None:
        raise AssertionError("moved to the CPU")

    monkeypatch.setattr(TransferModule, "cpu", moved)
    short(tmp_path)


def test_where_single_precision_does_not_converge_double_does_and_the_solution_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, asked = torch.linalg.eigh, []

    def stubborn(matrix: torch.Tensor) -> object:
        asked.append(matrix.dtype)
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")
        return real(matrix)

    for n, d in ((90, 20), (40, 60)):  # more images than features, and fewer
        x, y = torch.randn(n, d, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3
        part = LabelledFeatures(x, y)
        usual = fit_logistic(part, part, CrossEntropy(3), (0.1,)).layer
        with monkeypatch.context() as patch:
            patch.setattr(torch.linalg, "eigh", stubborn)
            found = fit_logistic(part, part, CrossEntropy(3), (0.1,)).layer
        assert torch.allclose(usual.weight, found.weight, atol=2e-3)
    assert asked == [torch.float32, torch.float64] * 2


def test_fewer_images_than_features_are_solved_within_what_they_span() -> None:
    seen = 0
    for n, d in ((30, 80), (50, 51), (60, 200)):
        rng = np.random.default_rng(n)
        y = np.arange(n) % 3
        x = (rng.standard_normal((n, d)) + 0.5 * rng.standard_normal((3, d))[y]).astype(np.float32)
        part = LabelledFeatures(torch.from_numpy(x), torch.from_numpy(y))
        layer = fit_logistic(part, part, CrossEntropy(3), (0.1,)).layer
        std = x.std(axis=0, ddof=1)
        theirs = LogisticRegression(C=1 / (n * 0.1), max_iter=5000, tol=1e-8).fit(
            (x - x.mean(axis=0)) / std, y
        )
        ours = layer(torch.from_numpy(x)).softmax(dim=1).detach().numpy()
        assert np.abs(ours - theirs.predict_proba((x - x.mean(axis=0)) / std)).max() < 1e-2
        seen += 1
    assert seen == 3
