"""How far two models agree, against plain counts."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from bertorch.tasks.agreement import COSINE, EQUAL, F1, SPEARMAN, equal_labels, mean_cosine, same_entities, same_order
from tests.exports import KINDS, small_task


def value(table):
    ((name, measure),) = table.measures.items()
    return name, measure.of(table.arrays(measure))


def test_equal_labels():
    assert value(equal_labels([["a"], ["b"], [], ["a", "b"]], [("a",), ("a",), (), ("a",)])) == (EQUAL, 0.5)


def test_mean_cosine():
    ours, theirs = np.eye(3)[[0, 1]], np.eye(3)[[0, 2]]
    assert value(mean_cosine(ours, theirs)) == (COSINE, 0.5)


def test_same_order():
    ours, theirs = [0.1, 0.4, 0.2, 0.9], [1.0, 2.0, 3.0, 3.5]
    assert value(same_order(ours, theirs)) == (SPEARMAN, pytest.approx(spearmanr(ours, theirs).statistic))


def test_same_entities():
    """Two of three are found, and one that is none; scores do not count."""
    ours = [np.array([[0, 2, 1, 0.5], [3, 4, 0, 1.0]]), np.array([[1, 2, 1, 1.0]])]
    theirs = [np.array([[0, 2, 1, 0.9], [3, 4, 1, 1.0]]), np.array([[1, 2, 1, 0.1]])]
    assert value(same_entities(ours, theirs)) == (F1, pytest.approx(4 / 6))


def test_without_entities_both_agree():
    nothing = [np.zeros((0, 4))] * 3
    assert value(same_entities(nothing, nothing)) == (F1, 1.0)
    assert value(same_entities(nothing, [np.ones((1, 4)), *nothing[1:]])) == (F1, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_agrees_with_itself_and_takes_plain_texts(kind, tmp_path):
    from bertorch.exporting.check_data import CheckData
    from bertorch.exporting.checking import check_metric

    task = small_task(kind)
    inputs = task.agreement().inputs_of(["房间干净。", "How?", "他在北京。", "A", "很好"])
    assert len(inputs) == 5
    check = check_metric(task, task, CheckData("texts", inputs=inputs), batch_size=2, max_loss=0.0)
    assert check.passed or check.loss < 1e-6
    path = tmp_path / "in.txt"
    path.write_text("甲\t乙\n丙\t丁\n" if kind in ("ranking", "sentence bert") else "甲\n丙\n")
    assert len(list(task.agreement().read(str(path)))) == 2
