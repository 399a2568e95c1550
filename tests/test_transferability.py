"""Training-free scores against their definitions, worked out another way."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from regraft.evaluation.transferability import (
    compute_h_score,
    knn_accuracy,
    leep_score,
    logme_score,
)


def problem(
    seed: int, n: int, d: int, classes: int, signal: float
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    return rng.standard_normal((n, d)) + signal * rng.standard_normal((classes, d))[labels], labels


def test_logme_is_the_highest_evidence_that_any_alpha_and_beta_reach() -> None:
    seen = 0
    for seed, (n, d, classes, signal) in enumerate(
        [(40, 5, 2, 1.0), (60, 12, 3, 0.7), (30, 4, 3, 1.5), (25, 40, 2, 1.0), (80, 20, 4, 2.0)]
    ):
        f, labels = problem(seed, n, d, classes, signal)
        by_class = []
        for label in range(classes):
            y = (labels == label).astype(float)

            def minus_evidence(
                logs: np.ndarray, f: np.ndarray = f, y: np.ndarray = y
            ) -> float:  # y ~ N(0, 1/beta + F Fᵀ/alpha)
                covariance = np.eye(len(f)) / np.exp(logs[1]) + f @ f.T / np.exp(logs[0])
                return float(
                    0.5
                    * (
                        np.linalg.slogdet(covariance)[1]
                        + y @ np.linalg.solve(covariance, y)
                        + len(y) * np.log(2 * np.pi)
                    )
                    / len(y)
                )

            by_class.append(
                -min(
                    minimize(
                        minus_evidence, start, method="Nelder-Mead", options={"maxiter": 2000}
                    ).fun
                    for start in ([0.0, 0.0], [3.0, 2.0])
                )
            )
        assert logme_score(f, labels) == pytest.approx(np.mean(by_class), abs=2e-3)
        seen += 1
    assert seen == 5


def test_h_score_is_the_share_of_variance_between_classes() -> None:
    seen = 0
    for seed, signal in enumerate((0.3, 0.7, 1.5)):
        f, labels = problem(seed, 20_000, 6, 3, signal)
        means = np.stack([f[labels == label].mean(axis=0) for label in range(3)])[labels]
        direct = np.trace(np.linalg.inv(np.cov(f.T, bias=True)) @ np.cov(means.T, bias=True))
        assert compute_h_score(f, labels) == pytest.approx(direct, rel=0.02)
        shuffled = np.random.default_rng(seed).permutation(labels)
        assert compute_h_score(f, shuffled) < 0.01 < direct
        seen += 1
    assert seen == 3


def test_leep_is_the_likelihood_of_what_the_source_classes_say() -> None:
    rng = np.random.default_rng(0)
    for classes, z, n in ((2, 3, 50), (4, 7, 80), (3, 2, 30)):
        source, labels = (
            rng.dirichlet(np.ones(z), n),
            np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)]),
        )
        joint = np.zeros((classes, z))
        for row, label in zip(source, labels, strict=True):
            joint[label] += row / n
        slowly = np.mean(
            [
                np.log(sum(joint[label, k] / joint[:, k].sum() * row[k] for k in range(z)))
                for row, label in zip(source, labels, strict=True)
            ]
        )
        assert leep_score(source, labels) == pytest.approx(slowly)
        assert leep_score(source, labels) < 0
    assert leep_score(np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 0])) == pytest.approx(0.0)


def test_neighbours_vote_by_the_angle_between_features() -> None:
    x, y = problem(0, 90, 8, 3, 1.0)
    x_val, y_val = problem(1, 40, 8, 3, 1.0)
    unit, unit_val = (
        x / np.linalg.norm(x, axis=1, keepdims=True),
        x_val / np.linalg.norm(x_val, axis=1, keepdims=True),
    )
    for k in (1, 3, 7):
        voted = [
            np.bincount(y[np.argsort(-unit @ one, kind="stable")[:k]], minlength=3).argmax()
            for one in unit_val
        ]
        assert knn_accuracy((x, y), (x_val * 10, y_val), k) == pytest.approx(
            np.mean(voted == y_val)
        )
    assert knn_accuracy((x, y), (x, y), 1) == 1.0
