"""Against trec_eval's own code on random cases, against plain loops, and on several processes."""

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import pytrec_eval
import torch

from bertorch import distributed
from bertorch.data.retrieval_dataset import RetrievalDataset
from bertorch.data.tokens import end_to_end
from bertorch.errors import ConstantScoresError, NotFiniteError
from bertorch.precision import Precision
from bertorch.tasks import retrieval_metric, search
from bertorch.tasks.retrieval_metric import DEPTH, Hits, RetrievalMetric, query_measures
from bertorch.training.eval_loop import evaluate
from tests.architectures import random_store
from tests.conftest import run_processes
from tests.small_tasks import contrastive_task, retrieval_data, siamese_task

CPU = torch.device("cpu")
THEIRS = {
    "recall@1": "recall_1", "recall@5": "recall_5", "recall@10": "recall_10", "recall@100": "recall_100",
    "accuracy@1": "success_1", "accuracy@5": "success_5", "accuracy@10": "success_10", "accuracy@100": "success_100",
    "map@100": "map_cut_100", "ndcg@10": "ndcg_cut_10",
}  # fmt: skip


def found_by(vectors, data) -> list[list[tuple[int, float]]]:
    """For each query all passages but its own with their cosines, best first, by plain loops."""
    unit = torch.nn.functional.normalize(vectors)
    rows = []
    for query, text in enumerate(data.queries.tolist()):
        cosines = {p: float(unit[text] @ unit[other]) for p, other in enumerate(data.passages.tolist())}
        cosines.pop(int(data.own[query]), None)
        rows.append(sorted(cosines.items(), key=lambda each: (-each[1], each[0])))
    return rows


def relevant_of(data) -> list[dict[int, float]]:
    grades = [{} for _ in data.queries]
    for (query, passage), grade in zip(data.relevant.tolist(), data.grades.tolist(), strict=True):
        grades[query][passage] = grade
    return grades


def plain_measures(ranked: list[int], grades: dict[int, float]) -> dict[str, float]:
    """The measures of one query."""
    hits = [rank for rank, passage in enumerate(ranked[:100], start=1) if passage in grades]
    gains = [grades.get(passage, 0.0) / math.log2(rank + 1) for rank, passage in enumerate(ranked[:10], start=1)]
    best = sorted(grades.values(), reverse=True)[:10]
    measures = {
        "ndcg@10": sum(gains) / sum(grade / math.log2(rank + 1) for rank, grade in enumerate(best, start=1)),
        "mrr@10": next((1 / rank for rank in hits if rank <= 10), 0.0),
        "map@100": sum(place / rank for place, rank in enumerate(hits, start=1)) / len(grades),
    }
    for cut in (1, 5, 10, 100):
        inside = sum(rank <= cut for rank in hits)
        measures |= {f"recall@{cut}": inside / len(grades), f"accuracy@{cut}": float(inside > 0)}
    return measures


def measured(vectors, data, batches=1) -> RetrievalMetric:
    metric = RetrievalMetric(CPU, data, vectors.shape[1])
    for indices in np.array_split(np.random.default_rng(0).permutation(len(data)), batches):
        metric.update(vectors[indices], None, indices)
    metric.reduce()
    return metric


def random_data(seed: int, texts: int = 40, passages: int = 150, queries: int = 12) -> RetrievalDataset:
    """Passages that share texts, some of them with queries, and grades from 1 to 3."""
    random = np.random.default_rng(seed)
    pairs = np.unique(random.integers(0, (queries, passages), (60, 2)), axis=0)
    pairs = np.unique(np.concatenate([pairs, np.stack([np.arange(queries)] * 2, axis=1)]), axis=0)
    own = np.where(random.random(queries) < 0.5, passages - 1 - np.arange(queries), -1)
    pairs = pairs[pairs[:, 1] != own[pairs[:, 0]]]
    return RetrievalDataset(
        random_store(texts, seed), np.arange(texts)[:, None], random.integers(0, texts, queries),
        random.integers(0, texts, passages), own, pairs, random.integers(1, 4, len(pairs)).astype(float),
        np.ones(queries, np.bool_),
    )  # fmt: skip


def test_the_measures_are_those_of_trec_eval():
    """1,000 random rankings; trec_eval gets the ranks as scores, so that its own rule for ties plays no part."""
    random = np.random.default_rng(0)
    run, qrel, kept = {}, {}, defaultdict(list)
    for query in range(1000):
        passages = int(random.integers(1, 160))
        ranked = random.permutation(passages)[: random.integers(1, passages + 1)].tolist()
        relevant = random.choice(passages, random.integers(1, min(passages, 130) + 1), replace=False).tolist()
        grades = {passage: int(random.integers(1, 4)) for passage in relevant}
        qrel[str(query)] = {str(passage): grade for passage, grade in grades.items()}
        run[str(query)] = {str(passage): -float(rank) for rank, passage in enumerate(ranked, start=1)}
        kept["relevant"] += [query] * len(grades)
        kept["grades"] += grades.values()
        for rank, passage in enumerate(ranked[:DEPTH], start=1):
            if passage in grades:
                kept["hits"].append((query, rank, grades[passage]))
    shuffled = random.permutation(np.array(kept["hits"]))
    hits = Hits(shuffled[:, 0], shuffled[:, 1], shuffled[:, 2].astype(float))
    ours = query_measures(hits, np.array(kept["relevant"]), np.array(kept["grades"], dtype=float))
    asked = {"recall.1,5,10,100", "success.1,5,10,100", "map_cut.100", "ndcg_cut.10"}
    theirs = pytrec_eval.RelevanceEvaluator(qrel, asked).evaluate(run)
    top = {query: dict(sorted(scores.items(), key=lambda each: -each[1])[:10]) for query, scores in run.items()}
    reciprocal = pytrec_eval.RelevanceEvaluator(qrel, {"recip_rank"}).evaluate(top)
    assert ours.keys() == THEIRS.keys() | {"mrr@10"}
    for query in range(1000):
        for name, values in ours.items():
            expected = theirs[str(query)][THEIRS[name]] if name in THEIRS else reciprocal[str(query)]["recip_rank"]
            assert values[query] == pytest.approx(expected, abs=1e-9), (query, name)


@pytest.mark.parametrize("texts", [4, 40, 160])  # of 150 passages: more than are looked at of each, and in all
@pytest.mark.parametrize("seed", range(8))
def test_ranks_and_measures_are_those_of_plain_loops(seed, texts):
    """Whole vectors of length 1 or 2: many cosines are equal, and exact."""
    data = random_data(seed, texts, passages=600 if texts == 4 else 150)
    vectors = torch.zeros(texts, 4, dtype=torch.float64)
    random = np.random.default_rng(seed)
    vectors[np.arange(texts), random.integers(0, 4, texts)] = 1.0
    vectors[::3] = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    metric = measured(vectors, data, batches=1 + seed % 4)
    table = metric.example_table().columns
    for query, (found, grades) in enumerate(zip(found_by(vectors, data), relevant_of(data), strict=True)):
        ranked = [passage for passage, _ in found]
        assert (metric.first[query], metric.first_scores[query]) == (ranked[0], pytest.approx(found[0][1], abs=1e-12))
        assert metric.first_grades[query] == grades.get(ranked[0], 0.0)
        for name, value in plain_measures(ranked, grades).items():
            assert table[name][query] == pytest.approx(value, abs=1e-9), (query, name)
        places = [ranked.index(passage) + 1 for passage in sorted(grades)]
        assert table["ranks"][query] == [place if place <= DEPTH else None for place in places]
        assert table["gold"][query] == [passage + 1 for passage in sorted(grades)]
    for name, values in table.items():
        if "@" in name:
            assert metric.report()[name] == pytest.approx(np.mean(values), abs=1e-12)


def test_a_passage_that_is_the_query_takes_no_rank():
    """The hundredth passage but the query itself is the hundredth."""
    texts = np.arange(120)
    data = RetrievalDataset(
        random_store(120), texts[:, None], np.array([0]), texts, np.array([0]), np.array([[0, 100], [0, 101]]),
        np.ones(2), np.ones(1, np.bool_),
    )  # fmt: skip
    angles = torch.arange(120, dtype=torch.float64) / 200  # the cosine with the query falls
    metric = measured(torch.stack([angles.cos(), angles.sin()], dim=1), data)
    assert metric.example_table().columns["ranks"] == [[100, None]]
    assert metric.report()["recall@100"] == 1 / 2


def test_what_is_logged_and_recorded():
    metric = measured(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), random_data(0))
    report, table = metric.report(), metric.example_table()
    assert metric.line() == f"MRR@10: {report['mrr@10']:.5f}, nDCG@10: {report['ndcg@10']:.5f}"
    assert metric.numbers() == {"ndcg@10": report["ndcg@10"], "mrr@10": report["mrr@10"]}
    assert list(metric.numbers()) == ["ndcg@10", "mrr@10"]
    assert (metric.name, metric.value, next(iter(table.measures))) == ("nDCG@10", report["ndcg@10"], "ndcg@10")
    assert (report["queries"], report["queries_without_relevant"], report["passages"]) == (12, 0, 150)
    assert {type(value) for value in table.columns["accuracy@5"]} == {bool}


def test_fewer_passages_than_ranks():
    data = RetrievalDataset(
        random_store(3), np.arange(3)[:, None], np.array([0]), np.array([1, 2]), np.array([-1]), np.array([[0, 0]]),
        np.ones(1), np.array([False, True]),
    )  # fmt: skip
    metric = measured(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]), data)
    assert metric.report()["mrr@10"] == 1 / 2 == metric.report()["map@100"]
    assert metric.report()["queries_without_relevant"] == 1
    assert metric.example_table().columns["query"] == [2]


def test_embeddings_that_no_longer_vary_are_an_error():
    with pytest.raises(
        ConstantScoresError, match="expected cosines that tell passages apart, got 1 for all: the model"
    ):
        measured(torch.ones(40, 4), random_data(0))


def test_a_narrow_width_may_not_vary():
    """With one dimension of the same sign all cosines are 1, however different the whole embeddings are."""
    data = random_data(0)
    task = contrastive_task(matryoshka=(1,))
    vectors = torch.randn(40, task.embedding_size, generator=torch.Generator().manual_seed(0))
    vectors[:, 0] = vectors[:, 0].abs()
    reports = []
    for matryoshka in ((1,), ()):
        _, metric = contrastive_task(matryoshka=matryoshka).evaluation(data, CPU)
        metric.update(vectors, None, np.arange(40))
        metric.reduce()
        reports.append(metric.report())
    dimensions = reports[0].pop("dimensions")
    assert reports[0] == reports[1]
    places = (np.delete(np.arange(150), own) if own >= 0 else np.arange(150) for own in data.own)
    in_order = [
        plain_measures(ranked.tolist(), grades) for ranked, grades in zip(places, relevant_of(data), strict=True)
    ]
    assert dimensions["1"]["mrr@10"] == pytest.approx(np.mean([each["mrr@10"] for each in in_order]))
    _, metric = task.evaluation(data, CPU)
    metric.update(torch.ones_like(vectors), None, np.arange(40))
    with pytest.raises(ConstantScoresError, match="the model has collapsed"):
        metric.reduce()


def test_embeddings_that_are_not_finite_are_an_error(monkeypatch):
    task, data = contrastive_task(), retrieval_data()
    with torch.no_grad():
        task.model.emb_reduce_linear.weight[0] = torch.nan
    with pytest.raises(NotFiniteError, match="expected finite results for the evaluation"):
        evaluate(task, data, 8, Precision.resolve("fp32", CPU))


@pytest.mark.parametrize("method", ["blocks", "faiss"])
@pytest.mark.parametrize("place", [0, 300])
def test_one_passage_that_is_not_finite_is_noticed_in_any_block(method, place, monkeypatch):
    monkeypatch.setattr(search, "SCORES_AT_ONCE", {"cpu": 6 * 128})
    if method == "faiss":
        pytest.importorskip("faiss")
        monkeypatch.setattr(search, "FAISS_BEYOND", 0)
    data = retrieval_data(400)
    vectors = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    vectors[data.passages[place]] = torch.nan
    metric = RetrievalMetric(CPU, data, 6)
    metric.update(vectors, None, np.arange(400))
    metric.reduce()
    assert np.isnan(metric.value)


def test_copies_of_passages_are_ranked_like_others_in_bounded_memory(monkeypatch):
    """Of 50 texts, whose cosines are 0, 0.6 or -0.8, 40 passages each, of which nearly all are too far behind."""
    random = np.random.default_rng(3)
    data = retrieval_data(56)
    passages = random.permutation(np.arange(6, 56).repeat(40))
    relevant = np.stack([np.arange(6).repeat(80), random.integers(0, 2000, 480)], axis=1)
    relevant = np.unique(relevant, axis=0)
    data = replace(data, passages=passages, own=np.full(6, -1), relevant=relevant, grades=np.ones(len(relevant)))
    vectors = torch.from_numpy(random.permuted(np.tile([3.0, -4.0, 0.0], (56, 1)), axis=1))  # (56, 3)
    vectors[:6] = torch.eye(3, dtype=vectors.dtype).repeat(2, 1)
    rows: list[int] = []

    def counted(starts, sizes):
        rows.append(int(sizes.sum()))
        return end_to_end(starts, sizes)

    monkeypatch.setattr(retrieval_metric, "end_to_end", counted)
    metric = RetrievalMetric(CPU, data, 3)
    metric.update(vectors, None, np.arange(56))
    metric.reduce()
    assert sum(rows) < 6 * 50 * 40 / 2
    plain = [
        plain_measures([passage for passage, _ in found], grades)
        for found, grades in zip(found_by(vectors, data), relevant_of(data), strict=True)
    ]
    for name, value in metric.report().items():
        if "@" in name:
            assert value == pytest.approx(np.mean([each[name] for each in plain]), abs=1e-12)


def evaluate_in_double(folder, make_task, batch_size) -> None:
    task = make_task()
    task.model.double()
    metric = evaluate(task, retrieval_data(), batch_size, Precision.resolve("fp32", CPU))
    torch.save((metric.report(), metric.example_table().columns), folder / f"{batch_size}-{distributed.rank()}.pt")


@pytest.mark.parametrize("make_task", [contrastive_task, pytest.param(siamese_task, marks=pytest.mark.slow)])
@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_measure_what_one_does(make_task, world_size, tmp_path, monkeypatch):
    """Passages and queries are spread over the processes; one text is the passage of several places."""
    run_processes(world_size, evaluate_in_double, tmp_path, make_task, 3)
    evaluate_in_double(tmp_path, make_task, 4)
    (report, columns) = torch.load(tmp_path / "4-0.pt", weights_only=False)
    for rank in range(world_size):
        theirs, their_columns = torch.load(tmp_path / f"3-{rank}.pt", weights_only=False)
        assert theirs == pytest.approx(report, abs=1e-9)
        assert their_columns["ranks"] == columns["ranks"]
        assert their_columns["ndcg@10"] == pytest.approx(columns["ndcg@10"], abs=1e-9)


def test_the_embeddings_are_those_of_the_encoder_in_use():
    """Also where training looks at pairs: the texts are encoded by the sentence encoder alone."""
    for make_task in (contrastive_task, siamese_task):
        task, data = make_task(), retrieval_data()
        task.model.eval()
        with torch.inference_mode():
            vectors = task.embedder_model(data.batch(np.arange(len(data))))
        metric = evaluate(task, data, 5, Precision.resolve("fp32", CPU))
        expected = [found[0][0] for found in found_by(vectors, data)]
        assert metric.first.tolist() == expected


def evaluate_few_texts(folder, texts) -> None:
    metric = evaluate(contrastive_task(), few_texts(texts), 8, Precision.resolve("fp32", CPU))
    (folder / f"{texts}-{distributed.rank()}").write_text(repr(metric.example_table().columns))


def few_texts(texts: int) -> RetrievalDataset:
    """One query, and the other texts as passages, the first of which is relevant."""
    return RetrievalDataset(
        random_store(texts), np.arange(texts)[:, None], np.array([0]), np.arange(1, texts), np.array([-1]),
        np.array([[0, 0]]), np.ones(1), np.ones(1, np.bool_),
    )  # fmt: skip


@pytest.mark.slow
def test_processes_without_a_passage_or_without_a_text(tmp_path):
    run_processes(3, evaluate_few_texts, tmp_path, 2)
    assert {(tmp_path / f"2-{rank}").read_text() for rank in range(3)} == {
        repr(measured(torch.eye(2), few_texts(2)).example_table().columns)
    }
