from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss

from regraft import evaluate


@given(st.integers(2, 6), st.integers(2, 200), st.integers(0, 10_000))
def test_scores_agree_with_scikit_learn(classes: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, classes)).astype(np.float32)
    targets = rng.integers(0, classes, n)
    found = evaluate.scores(logits, targets)
    assert found.accuracy == pytest.approx(accuracy_score(targets, logits.argmax(1)))
    assert found.loss == pytest.approx(log_loss(targets, np.exp(evaluate.log_softmax(logits)), labels=range(classes)), rel=1e-5)
    assert found.ci95[0] <= found.accuracy <= found.ci95[1]
    assert found.n == n


def test_huge_logits_stay_finite() -> None:
    assert np.isfinite(evaluate.scores(np.array([[1e4, -1e4], [0, 0]]), np.array([1, 0])).loss)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = trials = 0
    for share in (0.5, 0.9, 0.98):
        for right in rng.binomial(300, share, 2000):
            low, high = evaluate.wilson(int(right), 300)
            covered += low <= share <= high
            trials += 1
    assert trials == 6000
    assert 0.935 <= covered / trials <= 0.965


def test_paired_differences_use_the_same_images() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(2000) < 0.9
    b = a.copy()
    b[rng.choice(np.flatnonzero(a), 60, replace=False)] = False
    found = evaluate.difference(a, b)
    assert found.points == pytest.approx(0.03)
    assert found.real
    assert found.ci95[0] < 0.03 < found.ci95[1]
    assert not evaluate.difference(a, a).real
    assert evaluate.difference(a, a).p == 1.0
    with pytest.raises(ValueError, match="not the same images"):
        evaluate.difference(a, b[:10])
