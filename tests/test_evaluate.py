"""Metrics against other libraries, and intervals and tests by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss

from regraft.evaluation.calibration import (
    coverage_curve,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
)
from regraft.evaluation.metrics import compute_metrics, hardest_examples
from regraft.evaluation.paired import compare_paired, pareto_front
from regraft.evaluation.scores import compute_scores, log_softmax, wilson_interval


@given(st.integers(2, 6), st.integers(2, 200), st.integers(0, 10_000))
def test_scores_agree_with_scikit_learn(classes: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, classes)).astype(np.float32)
    targets = rng.integers(0, classes, n)
    found = compute_scores(logits, targets)
    assert found.accuracy == pytest.approx(accuracy_score(targets, logits.argmax(1)))
    assert found.loss == pytest.approx(
        log_loss(targets, np.exp(log_softmax(logits)), labels=range(classes)), rel=1e-5
    )
    assert found.ci95[0] <= found.accuracy <= found.ci95[1]
    assert found.n == n


def test_huge_logits_stay_finite() -> None:
    assert np.isfinite(compute_scores(np.array([[1e4, -1e4], [0, 0]]), np.array([1, 0])).loss)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [wilson_interval(correct, 300) for correct in range(301)]
    covered = trials = 0
    for share in (0.5, 0.9, 0.98):
        for correct in rng.binomial(300, share, 2000):
            low, high = intervals[correct]
            covered += low <= share <= high
            trials += 1
    assert trials == 6000
    assert 0.935 <= covered / trials <= 0.965


def test_paired_differences_use_the_same_images() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(2000) < 0.9
    b = a.copy()
    b[rng.choice(np.flatnonzero(a), 60, replace=False)] = False
    found = compare_paired(a, b)
    assert found.delta == pytest.approx(0.03)
    assert found.significant
    assert found.ci95[0] < 0.03 < found.ci95[1]
    assert not compare_paired(a, a).significant
    assert compare_paired(a, a).p == 1.0
    with pytest.raises(ValueError, match="not the same images"):
        compare_paired(a, b[:10])


def cases(count: int, most: int = 12):  # type: ignore[no-untyped-def]
    """Yield logits, targets and a number of classes, with every degree of skill."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        classes = int(rng.integers(2, most))
        targets = rng.integers(0, classes, int(rng.integers(3, 300)))
        skill = rng.choice([0.0, 1.0, 4.0])
        yield (
            (
                rng.normal(0, rng.choice([0.3, 2.0]), (len(targets), classes))
                + skill * np.eye(classes)[targets]
            ).astype(np.float32),
            targets,
            classes,
        )


def test_measures_agree_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score, recall_score, top_k_accuracy_score

    seen = tops = 0
    for logits, targets, classes in cases(150):
        found = compute_metrics(
            logits, targets, [str(number) for number in range(classes)]
        ).to_json()
        said = logits.argmax(1)
        labels = np.arange(classes)
        assert [row["recall"] for row in found["per_class"]] == pytest.approx(
            recall_score(targets, said, labels=labels, average=None, zero_division=0)
        )
        there = np.unique(targets)
        assert found["macro_f1"] == pytest.approx(
            f1_score(targets, said, labels=there, average="macro", zero_division=0)
        )
        assert np.trace(found["confusion"]) == round(found["accuracy"] * len(targets))
        assert (found["top5"] is None) == (classes <= 5)
        if found["top5"] is not None:
            assert found["top5"] == pytest.approx(
                top_k_accuracy_score(targets, logits, k=5, labels=labels)
            )
            tops += 1
        seen += 1
    assert seen == 150
    assert tops > 40


@pytest.mark.slow
def test_calibration_agrees_with_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    seen = 0
    for logits, targets, classes in cases(150):
        chances = torch.from_numpy(np.exp(log_softmax(logits)).astype(np.float32))
        theirs = multiclass_calibration_error(
            chances, torch.from_numpy(targets), classes, n_bins=15, validate_args=False
        )
        assert expected_calibration_error(logits, targets) == pytest.approx(float(theirs), abs=2e-4)
        assert sum(one.n for one in reliability_bins(logits, targets)) == len(targets)
        seen += 1
    assert seen == 150


def test_the_temperature_is_found_again_and_never_harms() -> None:
    rng = np.random.default_rng(0)
    for true in (0.5, 1.0, 3.0):
        honest = rng.normal(0, 2, (20_000, 5))
        targets = (honest + rng.gumbel(size=honest.shape)).argmax(1)
        found = fit_temperature(honest * true, targets)
        assert found == pytest.approx(true, rel=0.05)
    seen = 0
    for logits, targets, _ in cases(60):
        found = fit_temperature(logits, targets)
        assert 0.05 <= found <= 20
        assert (
            compute_scores(logits / found, targets).loss
            <= compute_scores(logits, targets).loss + 1e-6
        )
        seen += 1
    assert seen == 60
    assert fit_temperature(np.eye(3) * 5, np.arange(3)) == 1.0


def test_coverage_answers_the_surest_first() -> None:
    seen = 0
    for logits, targets, _ in cases(60):
        rows = coverage_curve(logits, targets)
        assert [point.coverage for point in rows] == [step / 20 for step in range(20, 0, -1)]
        assert rows[0].accuracy == pytest.approx(compute_scores(logits, targets).accuracy)
        assert all(a.confidence <= b.confidence for a, b in itertools.pairwise(rows))
        seen += 1
    assert seen == 60
    sure = np.array([[9.0, 0], [8, 0], [0.1, 0], [0.2, 0]])
    assert coverage_curve(sure, np.array([0, 0, 1, 1]))[10].accuracy == 1.0


def test_the_worst_mistakes_are_wrong_and_sure() -> None:
    logits = np.array([[5.0, 0], [0, 3], [0.1, 0], [0, 9], [7, 0]])
    worst, least = hardest_examples(logits, np.array([1, 1, 1, 0, 0]), 2)
    assert worst.tolist() == [3, 0]
    assert least.tolist() == [2, 1]


@pytest.mark.slow
def test_the_bootstrap_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        kind = rng.choice(3, 400, p=[0.08, 0.05, 0.87])
        found = compare_paired(kind == 0, kind == 1, seed=int(rng.integers(1 << 30)))
        covered += found.ci95[0] <= 0.03 <= found.ci95[1]
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.slow
def test_the_images_needed_find_the_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    a, b = (
        np.arange(1000) < 80,
        (np.arange(1000) >= 80) & (np.arange(1000) < 130),
    )  # only A right on 8 %, only B on 5 %
    needed = compare_paired(a, b).required_n
    assert needed is not None
    found = 0
    for _ in range(300):
        kind = rng.choice(3, needed, p=[0.08, 0.05, 0.87])
        found += compare_paired(kind == 0, kind == 1).significant
    assert 0.7 <= found / 300 <= 0.88
    assert compare_paired(a, a).required_n is None


def test_a_difference_is_said_in_one_plain_sentence() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(2000) < 0.9
    b = a & (rng.random(2000) > 0.05)
    assert compare_paired(a, b).sentence("A", "B").startswith("A is better than B by ")
    assert compare_paired(b, a).sentence("B", "A") == compare_paired(a, b).sentence("A", "B")
    few = compare_paired(np.array([True] * 10), np.array([True] * 9 + [False])).sentence("A", "B")
    assert few.startswith("No significant difference between A and B on 10 images; about ")
    assert (
        compare_paired(a, a).sentence("A", "B")
        == "No significant difference between A and B on 2,000 images."
    )


def test_the_pareto_front_holds_what_nobody_beats() -> None:
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(200):
        points = [(float(x), float(y)) for x, y in rng.integers(0, 8, (rng.integers(1, 12), 2))]
        kept = [points[number] for number in pareto_front(points)]
        beaten = [
            one
            for one in points
            if any(o[0] <= one[0] and o[1] >= one[1] and o != one for o in points)
        ]
        assert set(kept) == set(points) - set(beaten)
        assert kept == sorted(kept)
        seen += 1
    assert seen == 200
