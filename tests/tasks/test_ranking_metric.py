"""Measures of rankings against plain loops and scikit-learn, and what does not change them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score

from bertorch import distributed
from bertorch.errors import ConstantScoresError
from bertorch.precision import Precision
from bertorch.tasks.ranking_metric import Candidates, RankingMetric, ranking_measures, ranks_of
from bertorch.training.eval_loop import evaluate
from tests.architectures import random_batch
from tests.conftest import run_processes
from tests.small_tasks import candidate_data, ranking_task

CPU = torch.device("cpu")


def random_candidates(seed: int, *, ties: bool) -> Candidates:
    """Candidates of 12 queries in any order, up to 25 of a query, the numbers of the queries with gaps."""
    generator = np.random.default_rng(seed)
    queries = generator.permutation(np.repeat(np.arange(12) * 3 + 1, generator.integers(1, 26, 12)))
    scores = generator.integers(0, 4, len(queries)) if ties else generator.normal(size=len(queries))
    relevances = generator.choice([0, 0, 0, 1, 2, 0.5], len(queries))
    for query in np.unique(queries):
        relevances[generator.choice(np.flatnonzero(queries == query))] = 1
    return Candidates(scores.astype(np.float64), relevances, queries)


def by_query(candidates: Candidates) -> list[list[tuple[float, float]]]:
    """The score and relevance of each query's candidates, as they come."""
    rows: dict[int, list[tuple[float, float]]] = {}
    for score, relevance, query in zip(*candidates, strict=True):
        rows.setdefault(query, []).append((score, relevance))
    return list(rows.values())


def measures_by_loops(candidates: Candidates) -> dict[str, float]:
    """Query by query, place by place."""
    sums = {"mrr@10": 0.0, "ndcg@10": 0.0, "map": 0.0, "hits@1": 0.0}
    queries = by_query(candidates)
    for rows in queries:
        order = sorted(rows, key=lambda row: -row[0])
        places = [place for place, (_, relevance) in enumerate(order, start=1) if relevance > 0]
        gain = sum(relevance / math.log2(place + 1) for place, (_, relevance) in enumerate(order[:10], start=1))
        ideal = sorted((relevance for _, relevance in rows), reverse=True)[:10]
        sums["mrr@10"] += 1 / places[0] if places[0] <= 10 else 0
        sums["ndcg@10"] += gain / sum(
            relevance / math.log2(place + 1) for place, relevance in enumerate(ideal, start=1)
        )
        sums["map"] += sum(count / place for count, place in enumerate(places, start=1)) / len(places)
        sums["hits@1"] += places[0] == 1
    return {name: total / len(queries) for name, total in sums.items()}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_measures_are_those_of_plain_loops(seed, ties):
    candidates = random_candidates(seed, ties=ties)
    assert ranking_measures(candidates) == pytest.approx(measures_by_loops(candidates), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_without_ties_they_are_those_of_scikit_learn(seed):
    candidates = random_candidates(seed, ties=False)
    rows = [np.array(query).T for query in by_query(candidates)]  # (2, candidates) each
    measures = ranking_measures(candidates)
    gains = [ndcg_score([relevances], [scores], k=10) if len(scores) > 1 else 1.0 for scores, relevances in rows]
    assert measures["ndcg@10"] == pytest.approx(np.mean(gains))
    precisions = [average_precision_score(relevances > 0, scores) for scores, relevances in rows]
    assert measures["map"] == pytest.approx(np.mean(precisions))


def test_ties_go_to_the_earlier_line():
    queries = np.array([7, 2, 7, 2, 7])
    assert ranks_of(np.array([1.0, 0.0, 1.0, 3.0, 2.0]), queries).tolist() == [2, 2, 3, 1, 1]
    first = Candidates(np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]), np.zeros(3, np.int64))
    second = first._replace(relevances=np.array([0.0, 1.0, 0.0]))
    assert [ranking_measures(each)["mrr@10"] for each in (first, second)] == [1, 0.5]


def test_a_relevant_candidate_beyond_the_tenth_place_counts_for_map_only():
    scores = -np.arange(12.0)
    measures = ranking_measures(Candidates(scores, (np.arange(12) == 10) * 3.0, np.zeros(12, np.int64)))
    assert measures == {"mrr@10": 0, "ndcg@10": 0, "map": pytest.approx(1 / 11), "hits@1": 0}


def updated(scores: torch.Tensor, labels: list[list[float]], *, parts: int = 1) -> RankingMetric:
    metric = RankingMetric(CPU)
    for indices in np.array_split(np.arange(len(scores))[::-1], parts):  # in any order
        batch = replace(random_batch([1]), labels=torch.tensor(labels, dtype=torch.float64)[indices.copy()])
        metric.update(scores[indices.copy()][:, None], batch, indices.copy())
    metric.reduce()
    return metric


def test_the_line_and_the_numbers():
    metric = updated(torch.tensor([0.5, 0.1, 0.2, 0.9]), [[0, 0], [1, 1], [2, 0], [0, 1]], parts=3)
    expected = 0.5 / math.log2(3) + 0.5 / math.log2(3)
    assert metric.line() == f"MRR@10: 0.50000, nDCG@10: {expected:.5f}"
    assert metric.value == 0.5
    assert list(metric.numbers()) == ["mrr@10", "ndcg@10"]
    assert metric.report() == {
        "examples": 4,
        "queries": 2,
        "mrr@10": 0.5,
        "ndcg@10": pytest.approx(expected),
        "map": 0.5,
        "hits@1": 0.0,
    }


LABELS = [[1, 0], [0, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("scores", "dtype"),
    [
        ([0.25, 0.25, 0.25, 0.25], torch.float32),
        ([0.25, 0.25, 0.250001, 0.25], torch.float32),
        ([3e4, 3e4, 3e4 + 0.1, 3e4], torch.float32),
        ([-2.0, -2.0, -2.0078125, -2.0], torch.bfloat16),  # neighbours
    ],
)
def test_scores_that_no_longer_vary_are_refused(scores, dtype):
    with pytest.raises(ConstantScoresError, match="tell candidates apart, got .* for all 4 lines"):
        updated(torch.tensor(scores, dtype=dtype), LABELS, parts=2)


@pytest.mark.parametrize(
    ("scores", "dtype"),
    [([0.25, 0.25, 0.2501, 0.25], torch.float32), ([-2.0, -2.0, -1.9375, -2.0], torch.bfloat16)],
)
def test_a_small_difference_is_one(scores, dtype):
    assert updated(torch.tensor(scores, dtype=dtype), LABELS).value == 0.75


def test_a_single_candidate_need_not_vary():
    assert updated(torch.tensor([1.0]), [[1, 0]]).value == 1


def test_scores_that_are_not_finite_give_no_measure():
    for wrong in (math.nan, math.inf):
        assert np.isnan(updated(torch.tensor([wrong, 1.0, 0.0, 2.0]), LABELS).value)


def report_in_double(folder, batch_size) -> None:
    task = ranking_task()
    task.model.double()
    metric = evaluate(task, candidate_data(23, 5), batch_size, Precision("fp32", "cpu"))
    (folder / f"{distributed.rank()}.txt").write_text(f"{metric.line()} {metric.report()}")


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_it_does_not_depend_on_processes_or_batch_size(world_size, tmp_path):
    for folder in ("one", "many"):
        (tmp_path / folder).mkdir()
    report_in_double(tmp_path / "one", 23)
    expected = (tmp_path / "one" / "0.txt").read_text()
    report_in_double(tmp_path / "one", 4)
    assert (tmp_path / "one" / "0.txt").read_text() == expected
    run_processes(world_size, report_in_double, tmp_path / "many", 3)
    assert [path.read_text() for path in (tmp_path / "many").iterdir()] == [expected] * world_size


def evaluate_constant(folder) -> None:
    task = ranking_task()
    with torch.no_grad():
        for parameter in task.model.model.classifier.parameters():
            parameter.zero_()
    try:
        evaluate(task, candidate_data(1 + distributed.world_size(), 1), 8, Precision("fp32", "cpu"))
    except ConstantScoresError as error:
        (folder / f"{distributed.rank()}.txt").write_text(str(error))


@pytest.mark.slow
def test_all_processes_stop_at_scores_that_do_not_vary(tmp_path):
    """One of them has fewer lines than the other."""
    run_processes(2, evaluate_constant, tmp_path)
    told = [path.read_text() for path in tmp_path.iterdir()]
    assert told == ["expected scores that tell candidates apart, got 0 for all 3 lines: the model has collapsed"] * 2
