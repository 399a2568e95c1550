"""Training: the linear probe, batches with Lightning, autotuning, freeze checks."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from conftest import TINY
from regraft.errors import UserError
from regraft.features.batches import Batches
from regraft.features.store import clear_cache
from regraft.models.backbone import load_backbone, model_info
from regraft.models.cut import cut_backbone
from regraft.models.head import compute_class_weights, make_head
from regraft.models.layers import distance_to_head
from regraft.options import CacheOptions, Runtime
from regraft.plans.schema import Phase, Plan
from regraft.plans.toml import parse_plan
from regraft.runs.layout import PhaseFiles
from regraft.training.autotune import (
    Notes,
    StepTimer,
    Thresholds,
    autotune,
    choose_execution,
)
from regraft.training.freeze_check import (
    NOT_OPTIMIZED,
    FreezeCheck,
    Optimized,
    count_batch_norms,
    freeze_verdict,
)
from regraft.training.linear import CrossEntropy, LabelledFeatures, fit_logistic
from regraft.training.mixing import mix
from regraft.training.module import (
    RunningMeans,
    TransferModule,
    describe_groups,
    learning_rate_factor,
    parameter_groups,
)
from regraft.training.selection import count_improvements
from regraft.training.trainer import FitResult, FitSettings, fit_phase
from tiny import Recorder, cut_of, fit_tiny


def blobs(n: int, d: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (classes, d))
    labels = rng.integers(0, classes, n)
    features = (centres[labels] + rng.normal(0, 2.5, (n, d))) * rng.uniform(
        0.1, 30, d
    ) + rng.normal(0, 5, d)
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def shrunk_deviation(features: torch.Tensor) -> torch.Tensor:
    variance = features.var(dim=0, correction=0)
    return ((len(features) * variance + 10 * variance.mean()) / (len(features) + 10)).sqrt()


def test_a_feature_that_was_nearly_dead_in_training_decides_nothing() -> None:
    seen = 0
    for images, small in ((40, 1e-3), (40, 1e-6), (160, 1e-3), (1000, 1e-4)):
        features, labels = blobs(images + 50, 30, 3, images)
        features /= features.std(dim=0)
        features[:, 7] = 0
        features[images // 2, 7] = small
        features[images:, 7] = 0.3
        train = LabelledFeatures(features[:images], labels[:images])
        val = LabelledFeatures(features[images:], labels[images:])
        layer = fit_logistic(train, val, CrossEntropy(3), (0.001, 0.1, 1.0)).layer
        assert float(layer.weight.detach()[:, 7].abs().max()) * 0.3 < 2, (images, small)
        assert float(layer(val.features).detach().abs().max()) < 20, (images, small)
        seen += 1
    assert seen == 4


def test_the_solved_head_agrees_with_scikit_learn() -> None:
    worst = 0.0
    for seed, l2 in ((0, 1e-3), (1, 1e-2), (2, 1e-1)):
        train = LabelledFeatures(*blobs(600, 40, 5, seed))
        val = LabelledFeatures(*blobs(400, 40, 5, seed + 50))
        probe = fit_logistic(train, val, CrossEntropy(5), (l2,))
        mean, std = train.features.mean(0), shrunk_deviation(train.features)
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
    assert compute_class_weights("none", labels, ("a", "b")) is None
    balanced = compute_class_weights("auto", labels, ("a", "b"))
    assert balanced is not None
    assert float(balanced[1] / balanced[0]) == pytest.approx(9)
    named = compute_class_weights({"b": 3.0}, labels, ("a", "b"))
    assert named is not None
    assert float(named[1] / named[0]) == pytest.approx(3)
    assert float(named[labels].mean()) == pytest.approx(1)
    absent = compute_class_weights("auto", labels, ("a", "b", "none of these"))
    assert absent is not None
    assert torch.isfinite(absent).all()


def test_a_head_has_the_layers_of_its_line_and_starts_undecided() -> None:
    made = make_head("flatten, bn, dense 16 relu, dropout 0.5, ln, dense 8 gelu", 32, 3, 0)
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
    again = make_head("flatten, bn, dense 16 relu, dropout 0.5, ln, dense 8 gelu", 32, 3, 0)
    assert torch.equal(made[1].weight, again[1].weight)


def module(train: str, **fields: object) -> TransferModule:
    source = load_backbone("test_resnet", "random", 32)
    _, suffix = cut_backbone(source, train)
    return TransferModule(
        suffix,
        make_head("bn, dense 8 relu", 96, 3, 0),
        Phase(train=train, **fields),
        0,
        distance_to_head(source),
    )  # type: ignore[arg-type]


def test_every_parameter_is_in_exactly_one_group_and_norms_and_biases_do_not_decay() -> None:
    seen = 0
    for train in ("head", "layer4", "layer2", "all"):
        made = module(train, weight_decay=0.1, layer_decay=0.5, lr=1.0)
        found = parameter_groups(made)
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
    seen = 0
    for fields in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        for _ in range(10):
            mixed = mix(images, Phase(train="all", **fields))  # type: ignore[arg-type]
            means = images[0].mean((1, 2, 3))
            expected = mixed.share * means + (1 - mixed.share) * means[mixed.partners]
            assert mixed.features[0].shape == images[0].shape
            assert torch.allclose(mixed.features[0].mean((1, 2, 3)), expected, atol=1e-4)
            seen += 1
    assert seen == 30
    plain = mix(images, Phase())
    assert (plain.share, plain.features) == (1.0, images)


def test_pasted_boxes_are_those_of_cutmix() -> None:
    torch.manual_seed(0)
    images = (torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 64, 64),)
    phase = Phase(train="all", cutmix=1.0)
    pasted = torch.zeros(64, 64)
    shares = []
    draws = 4000
    for _ in range(draws):
        mixed = mix(images, phase)
        if bool(mixed.partners[0] == 0):
            continue
        pasted += (mixed.features[0][0, 0] != images[0][0, 0]).float()
        shares.append(mixed.share)
    assert len(shares) > draws / 3
    mask = pasted / len(shares)
    quadrants = [mask[:32, :32], mask[:32, 32:], mask[32:, :32], mask[32:, 32:]]
    means = [float(quadrant.mean()) for quadrant in quadrants]
    assert max(means) - min(means) < 0.03, means
    assert np.mean(shares) == pytest.approx(0.685, abs=0.02)  # as timm's rand_bbox


def test_ties_on_validation_go_to_the_smaller_loss() -> None:
    cases = (  # accuracies and losses of epochs, monitor, smallest step, improvements after each
        ((0.5, 0.5, 0.5), (1.0, 0.8, 0.9), "val_accuracy", 0.0, (1, 2, 2)),
        ((0.5, 0.6, 0.5), (1.0, 2.0, 0.1), "val_accuracy", 0.0, (1, 2, 2)),
        ((0.5, 0.6, 0.7), (1.0, 1.0, 1.0), "val_loss", 0.0, (1, 2, 3)),
        ((0.5, 0.6, 0.4), (1.0, 1.1, 0.9), "val_loss", 0.0, (1, 1, 2)),
        ((0.5, 0.55, 0.7), (1.0, 0.2, 1.0), "val_accuracy", 0.1, (1, 1, 2)),
        ((0.1, 0.1, 0.1), (math.nan, 3.0, math.nan), "val_accuracy", 0.0, (1, 2, 2)),
    )
    for accuracies, losses, monitor, smallest, wanted in cases:
        history = []
        found = []
        for accuracy, loss in zip(accuracies, losses, strict=True):
            history.append({"val_accuracy": accuracy, "val_loss": loss})
            found.append(count_improvements(history, monitor, smallest))
        assert tuple(found) == wanted, (accuracies, losses, monitor)


def test_kept_statistics_stay_and_adapted_ones_move() -> None:
    for policy in ("keep", "adapt"):
        made = module("layer4", batch_norm=policy)
        norms = [each for each in made.suffix.modules() if isinstance(each, nn.BatchNorm2d)]
        before = [norm.running_mean.clone() for norm in norms]
        made.train()
        made.on_train_epoch_start()
        prefix, _ = cut_backbone(load_backbone(TINY, "random", 32), "layer4")
        made(*(value.clone() for value in prefix(torch.randn(8, 3, 32, 32))))
        moved = []
        for norm, old in zip(norms, before, strict=True):
            moved.append(not torch.equal(norm.running_mean, old))
        assert moved
        assert all(moved) == any(moved) == (policy == "adapt")


def read_from(features: torch.Tensor):  # type: ignore[no-untyped-def]
    """Return a reader of features that are at hand."""
    return lambda rows, epoch: (features[rows],)


def batches_of(
    features: torch.Tensor, labels: np.ndarray, size: int = 16
) -> tuple[Batches, Batches]:
    """Return shuffled and plain batches of the same images."""
    read = read_from(features)
    return Batches(read, labels, size, 0), Batches(read, labels, size, None)


def short(
    tmp_path: Path,
    precision: str = "float32",
    kind: type[TransferModule] = TransferModule,
    **fields: object,
) -> tuple[TransferModule, FitResult, float]:
    """Train a few epochs on random features; returns the module, the result, its loss on val."""
    phase = Phase(epochs=4, lr=0.05, batch_size=16, **fields)  # type: ignore[arg-type]
    head = make_head("dense 16 relu", 8, 3, 0)
    made = kind(nn.Identity(), head, phase, 0, lambda _: 1)
    features, labels = blobs(96, 8, 3, 0)
    settings = FitSettings(PhaseFiles(tmp_path, 0), precision)
    result = fit_phase(made, *batches_of(features, labels.numpy()), settings)
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(made(features), labels))
    return made, result, loss


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
        means = RunningMeans()
        assert means.to_metrics("val") == {}
        for some, wanted in zip(logits.split(sizes), targets.split(sizes), strict=True):
            means.add(torch.nn.functional.cross_entropy(some, wanted), some, wanted)
        loss, right = (
            torch.nn.functional.cross_entropy(logits, targets),
            (logits.argmax(dim=1) == targets).float().mean(),
        )
        assert means.to_metrics("val") == pytest.approx(
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
    before = make_head("dense 16 relu", 8, 3, 0)
    made, left, _ = short(tmp_path, precision, optimizer=optimizer, gradient_clip=0.5)
    assert not torch.equal(made.head[0].weight, before[0].weight)
    assert left.without_gradient == []


class Unmovable(TransferModule):
    def cpu(self) -> TransferModule:
        raise AssertionError("moved to the CPU")


def test_the_network_stays_on_its_device_when_training_ends(tmp_path: Path) -> None:
    short(tmp_path, kind=Unmovable)


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


def test_a_checkpoint_of_another_phase_or_a_broken_one_is_not_resumed(tmp_path: Path) -> None:
    plain = short(tmp_path / "plain")[0]
    for damage in ("other", "broken"):
        folder = tmp_path / damage
        short(folder)
        last = PhaseFiles(folder, 1 if damage == "other" else 0)
        if damage == "broken":
            last.last.write_bytes(b"no checkpoint")
        phase = Phase(epochs=4, lr=0.05, batch_size=16)
        again = TransferModule(
            nn.Identity(), make_head("dense 16 relu", 8, 3, 0), phase, 0, lambda _: 1
        )
        features, labels = blobs(96, 8, 3, 0)
        settings = FitSettings(last, resume=True)
        result = fit_phase(again, *batches_of(features, labels.numpy()), settings)
        assert len(result.history) == 4
        assert torch.equal(again.head[0].weight, plain.head[0].weight)


# autotuning


def known(**seconds: float) -> dict[str, float]:
    return {name.replace("_", " "): value for name, value in seconds.items()}


def untouchable() -> SimpleNamespace:
    """A module that must not be measured, and notes whether it is to run compiled."""
    made = SimpleNamespace(forward=lambda *_: None, used=[])
    made.use_compiled = lambda forward, size: made.used.append(size)
    return made


def test_the_fastest_way_is_taken_where_training_is_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    times = known(float32=1.0, bfloat16=0.5, bfloat16_compiled=0.2, float32_compiled=0.5)
    cases = [
        (10, "auto", "auto", times, ("float32", False)),  # ten seconds: nothing repays
        (60, "auto", "auto", times, ("bfloat16", False)),  # a minute: arithmetic does
        (600, "auto", "auto", times, ("bfloat16", True)),
        (600, "auto", "off", times, ("bfloat16", False)),
        (10, "auto", "on", times, ("float32", True)),
        (600, "float32", "auto", times, ("float32", True)),
        (600, "auto", "auto", {**times, "bfloat16": 0.95}, ("float32", True)),  # not clearly faster
        (600, "auto", "auto", {**times, "bfloat16 compiled": 0.49}, ("bfloat16", False)),
        (600, "bfloat16", "off", times, ("bfloat16", False)),
    ]
    batch = ((torch.zeros(4, 2),), torch.zeros(4, dtype=torch.int64))
    for steps, precision, compiling, seconds, expected in cases:
        made = untouchable()
        timer = StepTimer(made, batch, dict(seconds))  # type: ignore[arg-type]
        chosen = choose_execution(timer, steps, precision, compiling)
        assert (chosen.precision, chosen.compiled) == expected, (steps, precision, compiling)
        assert made.used == [4] * expected[1]
        assert "ms a step" in chosen.why


def whole_module(batch_norm: str = "adapt") -> TransferModule:
    """Return a small network of which everything is trained."""
    source = load_backbone(TINY, "random", 32)
    _, suffix = cut_backbone(source, "all")
    phase = Phase(train="all", batch_norm=batch_norm)  # type: ignore[arg-type]
    return TransferModule(suffix, make_head("", 96, 3, 0), phase, 0, distance_to_head(source))


def four_images() -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return (images,), torch.tensor([0, 1, 2, 0])


def test_measuring_leaves_weights_buffers_gradients_and_chance_alone() -> None:
    made = whole_module().train_mode()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    torch.manual_seed(0)
    chance = torch.random.get_rng_state()
    timer = StepTimer(made, four_images(), {})
    choose_execution(timer, 10**6, "auto", "off")
    assert set(timer.known) == {"float32", "bfloat16"}
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())
    assert torch.equal(chance, torch.random.get_rng_state())


def test_compiling_that_fails_is_said_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda run, **_: broken)
    timer = StepTimer(whole_module().train_mode(), four_images(), {})
    chosen = choose_execution(timer, 10, "float32", "on")
    assert (chosen.precision, chosen.compiled) == ("float32", False)
    assert "compiling failed (no compiler)" in chosen.why


def test_whole_batches_run_compiled_and_the_last_one_does_not(tmp_path: Path) -> None:
    sizes: list[int] = []
    phase = Phase(epochs=2, batch_size=16)
    made = TransferModule(nn.Identity(), make_head("", 8, 3, 0), phase, 0, lambda _: 1)

    def quick(*features: torch.Tensor) -> torch.Tensor:
        sizes.append(len(features[0]))
        return TransferModule.forward(made, *features)

    made.use_compiled(quick, 16)
    batches = batches_of(torch.randn(40, 8), np.arange(40) % 3)
    fit_phase(made, *batches, FitSettings(PhaseFiles(tmp_path, 0)))
    assert sizes == [16] * 4


def test_half_batches_whose_gradients_add_up_train_the_same(tmp_path: Path) -> None:
    values = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    labels = np.arange(64) % 3
    trained = []
    for share in (1, 2, 4):
        phase = Phase(epochs=3, lr=0.1, optimizer="sgd")
        head = make_head("dense 6 relu", 8, 3, 0)
        made = TransferModule(nn.Identity(), head, phase, 0, lambda _: 1)
        settings = FitSettings(PhaseFiles(tmp_path / str(share), 0), accumulate=share)
        result = fit_phase(made, *batches_of(values, labels, 16 // share), settings)
        trained.append((made.head[0].weight.detach(), result.history[-1]["val_loss"]))
    assert len(trained) == 3
    for weight, loss in trained:
        assert torch.allclose(trained[0][0], weight, atol=1e-5)
        assert loss == pytest.approx(trained[0][1], rel=1e-4)


def test_training_that_runs_out_of_memory_starts_again_with_half_batches(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, tried = lightning.Trainer.fit, []

    def short_of_memory(trainer, module, train, *rest, **options):  # type: ignore[no-untyped-def]
        tried.append(train.size)
        if train.size > 4:
            with torch.no_grad():
                module.head[-1].weight.fill_(7.0)  # what a broken step would leave
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        assert float(module.head[-1].weight.detach().abs().max()) == 0.0
        return fit(trainer, module, train, *rest, **options)

    monkeypatch.setattr(lightning.Trainer, "fit", short_of_memory)
    run = fit_tiny(photos, "fine-tune", "out", ["phases.0.epochs=1", "phases.0.batch_size=16"])
    assert tried == [16, 8, 4]
    log = (run.path / "log.txt").read_text()
    assert "the phase starts again with batches of 8, 2 of which make a step" in log
    assert "batches of 4, 4 of which make a step" in log


def test_what_was_measured_is_remembered_and_read_before_anything_is_measured(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_processor(monkeypatch, "avx512_bf16")
    (images,), targets = four_images()
    batches = Batches(read_from(images), targets.numpy(), 4, 0)
    plan = parse_plan(
        {
            "backbone": TINY,
            "resolution": 32,
            "train_precision": "auto",
            "phases": [{"train": "all", "epochs": 1}],
        }
    )
    thresholds = Thresholds(measure=0.0)
    cache = CacheOptions()
    first = Notes(tmp_path / "one.json", cache)
    autotune(whole_module(), batches, plan, first, Runtime(), thresholds)
    (shared,) = (own_cache / "paces").glob("*.json")
    measured = json.loads(shared.read_text())
    assert set(measured) == {"float32", "bfloat16"}
    assert json.loads(first.run.read_text()) == measured
    # another run finds them in the cache, the same run beside it
    for faster, note in (("bfloat16", "two.json"), ("float32", "two.json")):
        shared.write_text(json.dumps({"float32": 10.0, "bfloat16": 10.0, faster: 1.0}))
        if faster == "float32":
            assert (tmp_path / note).is_file()
        notes = Notes(tmp_path / note, cache)
        recorder = Recorder()
        chosen = autotune(
            whole_module(), batches, plan, notes, Runtime(reporter=recorder), thresholds
        )
        assert chosen.precision == "bfloat16"
        assert recorder.texts == [
            "Training in bfloat16: bfloat16 takes 1,000 ms a step, float32 10,000."
        ]


def test_the_same_run_takes_the_same_way(
    photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_processor(monkeypatch, "avx512_bf16")
    overrides = ["phases.0.epochs=1", "train_precision=auto"]
    first = fit_tiny(photos, "fine-tune", "one", overrides)
    (shared,) = (own_cache / "paces").glob("*.json")
    assert set(json.loads(shared.read_text())) == {"float32"}  # it is short
    assert first.scores["paces"][0]["phase"] == 0
    shared.write_text(json.dumps({"float32": 100.0, "bfloat16": 1.0}))
    second = fit_tiny(photos, "fine-tune", "two", overrides, compile="off")
    assert second.scores["paces"][0]["precision"] == "bfloat16"
    log = (second.path / "log.txt").read_text()
    assert "Training in bfloat16: bfloat16 takes 1,000 ms a step, float32 100,000." in log
    shared.write_text("{broken")
    fit_tiny(photos, "fine-tune", "three", overrides)
    clear_cache(own_cache)
    assert not (own_cache / "paces").exists()


def test_who_is_stopped_while_measurements_are_remembered_has_noted_none_of_his_own(
    photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    replace, stopped = os.replace, []

    def stop(source: Path, target: Path) -> None:
        if Path(target).parent == own_cache / "paces":
            stopped.append(target)
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(photos, "fine-tune", "out")
    assert len(stopped) == 1
    assert not list(Path("out").rglob("pace-*"))


def set_processor(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    """Let the system say that the processor has these instructions."""
    read = Path.read_text

    def read_text(path: Path, *options: object, **more: object) -> str:
        if str(path) == "/proc/cpuinfo":
            return f"model name : processor\nflags : {flags}\n"
        return read(path, *options, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)


def test_where_the_processor_lacks_bfloat16_everything_is_float32(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regraft.commands.resolve import default_precision

    precisions = {}
    for flags in ("avx512_bf16", "amx_bf16", "avx2"):
        set_processor(monkeypatch, flags)
        precisions[flags] = default_precision("cpu")["precision"]
    assert precisions == {"avx512_bf16": "bfloat16", "amx_bf16": "bfloat16", "avx2": "float32"}
    run = fit_tiny(
        photos, "fine-tune-top", "out", ["phases.0.epochs=1", "train_precision=bfloat16"]
    )
    assert run.plan.precision == "float32"
    assert run.scores["paces"][0]["precision"] == "float32"


# resolutions of phases


def test_a_phase_may_see_smaller_images_than_the_plan(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[int] = []
    interpolate = nn.functional.interpolate

    def spy(batch: torch.Tensor, size: tuple[int, int], **options: object) -> torch.Tensor:
        sides.append(size[0])
        return interpolate(batch, size=size, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.functional, "interpolate", spy)
    overrides = [
        "resolution=40",
        "phases.1.resolution=24",
        "phases.1.epochs=1",
        "phases.1.batch_size=8",
    ]
    run = fit_tiny(photos, "probe-then-fine-tune", "out", overrides)
    assert list(dict.fromkeys(sides)) == [40, 24]
    assert sides[-1] == 40  # scores are those of the plan's resolution
    assert run.plan.phases[1].resolution == 24


def test_a_resolution_that_cannot_be_is_refused() -> None:
    from dataclasses import replace

    info = model_info("test_vit")
    phase = {"train": "all", "resolution": 64}
    plan = parse_plan({"backbone": "test_vit", "resolution": info.resolution, "phases": [phase]})
    fixed = replace(info, fixed_resolution=True)
    with pytest.raises(
        UserError, match=r"phases.0.resolution: test_vit takes one resolution only; use 0"
    ):
        plan.check(fixed, ("a", "b"))
    with pytest.raises(
        UserError, match="resolution 5 is too small to see anything; use 8 or more, or 0"
    ):
        parse_plan({"backbone": TINY, "resolution": 32, "phases": [{**phase, "resolution": 5}]})
    flat = {"backbone": TINY, "resolution": 32, "head": "flatten", "phases": [phase]}
    with pytest.raises(UserError, match="a head with 'flatten' takes one resolution only"):
        parse_plan(flat).check(model_info(TINY), ("a", "b"))


# freeze checks


def test_a_freeze_check_names_every_frozen_tensor_that_changed() -> None:
    source = load_backbone(TINY, "random", 32)
    cut = cut_of(source, "layer4")
    phase = Phase(train="layer4", batch_norm="keep")
    untouched = FreezeCheck(3, phase, cut)
    with torch.no_grad():
        next(cut.trained.parameters()).add_(1.0)  # what is trained may change
    result = untouched.result(NOT_OPTIMIZED)
    assert (result["kept"], result["changed"], result["phase"]) == (True, [], 3)
    assert result["frozen_before"] == result["frozen_after"] == cut.frozen.digest()
    frozen_norms = count_batch_norms(cut.frozen)
    assert result["batch_norm"] == {
        "frozen": frozen_norms,
        "frozen_mode": "eval",
        "trained": count_batch_norms(cut.trained),
        "trained_statistics": "keep",
    }
    assert frozen_norms > 0
    assert freeze_verdict([result]) == "kept"
    check = FreezeCheck(0, phase, cut)
    names = [name for name, _ in cut.frozen.named_parameters()]
    with torch.no_grad():
        dict(cut.frozen.named_parameters())[names[2]].view(-1)[0] += 1e-3
        statistics = next(name for name, _ in cut.frozen.named_buffers() if "running" in name)
        dict(cut.frozen.named_buffers())[statistics].view(-1)[0] += 1e-3
    broken = check.result(Optimized([{"lr": 1.0}], ["head.0.bias"]))
    assert not broken["kept"]
    assert broken["changed"] == sorted([names[2], statistics])
    assert broken["groups"] == [{"lr": 1.0}]
    assert broken["without_gradient"] == ["head.0.bias"]
    assert freeze_verdict([result, broken]) == "broken"


def test_a_linear_probe_says_what_it_has_no_use_for(photos: Path) -> None:
    overrides = ["phases.0.lr=0.5", "phases.0.epochs=3"]
    log = (fit_tiny(photos, "linear-probe", "out", overrides).path / "log.txt").read_text()
    assert "A linear probe has no use for lr = 0.5, epochs = 3." in log


def test_batch_norm_on_single_images_is_refused(photos: Path) -> None:
    with pytest.raises(UserError, match="batch_size = 1 was given, but BatchNorm needs"):
        fit_tiny(
            photos, "fine-tune-top", "out", ["phases.0.batch_size=1", "phases.0.batch_norm=adapt"]
        )


def test_groups_are_described_as_they_are() -> None:
    made = module("layer4", weight_decay=0.1, layer_decay=0.5, lr=1.0)
    described = describe_groups(made)
    assert len(described) == len(parameter_groups(made))
    assert sum(group["tensors"] for group in described) == len(list(made.parameters()))
    total = sum(parameter.numel() for parameter in made.parameters())
    assert sum(group["parameters"] for group in described) == total


def test_a_plan_may_not_ask_for_what_lbfgs_cannot() -> None:
    with pytest.raises(ValueError, match="fits a head only"):
        Plan(backbone=TINY, resolution=32, phases=(Phase(train="all", optimizer="lbfgs"),))
