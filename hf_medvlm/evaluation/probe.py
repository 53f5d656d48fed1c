"""A linear probe: what a logistic regression on frozen features can tell. NumPy and scikit-learn; knows no model."""

from __future__ import annotations

import numpy as np

ITERATIONS = 200


def probe_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Scores of each test row for each finding, from one logistic regression a finding.

    Args:
        train: (N, D) features to learn from. labels: (N, C) of 1, 0 and NaN, which is left out.
        test: (M, D) features to judge.

    Returns:
        (M, C) log odds; 0 throughout for a finding of which `labels` does not show both sides.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores = np.zeros((len(test), labels.shape[1]))
    for column in range(labels.shape[1]):
        counted = ~np.isnan(labels[:, column])
        truth = labels[counted, column]
        if len(np.unique(truth)) < 2:
            continue
        # balanced: findings are rare, and the probe is to rank them
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=ITERATIONS))
        scores[:, column] = model.fit(train[counted], truth).decision_function(test)
    return scores
