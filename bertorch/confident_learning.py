"""Which labels are probably wrong, by confident learning.

References:
    Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 2021.
"""

import numpy as np

_ROUNDING = 1e-6  # a probability that is lower than a threshold by less is not lower


def confident_joint(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """How many examples are estimated to have each given and each true label, (C, C) int64, given in rows.

    An example counts as label j where its probability of j is at least the threshold of j, the mean probability of j
    over the examples with the given label j; as the likeliest of several such labels, and not at all where there is
    none. The counts are then scaled so that each row has the number of examples with its given label.

    Args:
        labels: given, (N,) int64.
        probabilities: out of sample, (N, C).
    """
    count = probabilities.shape[1]
    given = np.bincount(labels, minlength=count)  # (C,)
    self_confidence = np.bincount(labels, _of_given(labels, probabilities), count)  # (C,), sums
    thresholds = np.where(given > 0, self_confidence / np.maximum(given, 1), np.inf)  # (C,)
    is_confident = probabilities >= thresholds - _ROUNDING  # (N, C)
    true = np.where(is_confident, probabilities, -1.0).argmax(axis=1)  # (N,)
    counted = is_confident.any(axis=1)  # (N,)
    pairs = labels[counted] * count + true[counted]  # (confident,)
    joint = np.bincount(pairs, minlength=count * count).reshape(count, count)  # (C, C)
    np.fill_diagonal(joint, joint.diagonal().clip(min=1))  # no label is wrong everywhere
    return np.array([_rounded(row * (total / row.sum())) for row, total in zip(joint, given, strict=True)])


def _of_given(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The self-confidence (N,): the probability of the label given."""
    return probabilities[np.arange(len(labels)), labels]


def _rounded(values: np.ndarray) -> np.ndarray:
    """Whole numbers (C,) with the sum of the values, a whole number: the largest remainders are rounded up.

    Of equal remainders the last are, as in cleanlab, the program of the paper's authors.
    """
    whole = np.floor(values + 1e-9).astype(np.int64)
    missing = round(float(values.sum())) - int(whole.sum())
    order = np.argsort((values - whole).round(9), kind="stable")[::-1]  # (C,)
    whole[order[:missing]] += 1
    return whole


def find_label_issues(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Which examples probably have a wrong label, (N,) bool: those pruned by noise rate.

    For each given label k and each other one j, as many of the examples with label k as the confident joint has for
    (k, j) are pruned: those with the largest difference of the probabilities of j and k. An example whose given label
    is the likeliest stays, and so does the last one of a label.

    Args:
        labels: given, (N,) int64.
        probabilities: out of sample, (N, C).
    """
    joint = confident_joint(labels, probabilities)  # (C, C)
    pruned = np.zeros(len(labels), dtype=bool)  # (N,)
    for given, counts in enumerate(joint):
        members = np.flatnonzero(labels == given)  # (M,)
        if len(members) < 2:
            continue
        for true in np.flatnonzero(counts):
            if true != given:
                margins = probabilities[members, true] - probabilities[members, given]  # (M,)
                pruned[members[np.argsort(-margins, kind="stable")[: counts[true]]]] = True
    return pruned & (_of_given(labels, probabilities) < probabilities.max(axis=1))
