"""Retrieval as dev data: which reading function takes it, what it is on disk, errors, the best weights."""

import json
from functools import partial

import numpy as np
import pytest
from transformers import AutoTokenizer

from bertorch.data.cache import open_dataset
from bertorch.data.prompts import NO_PROMPTS, Prompts
from bertorch.data.retrieval import read_retrieval_folder
from bertorch.data.retrieval_dataset import RetrievalDataset
from bertorch.errors import UserError
from bertorch.tasks.label_counts import has_labels
from bertorch.tasks.retrieval import dev_reader, not_found_first, queries_and_passages
from bertorch.tasks.scored_pairs import scored_pairs
from bertorch.training.run_options import describe_run
from tests.conftest import RETRIEVAL, STS, TINY
from tests.short_runs import config, trained
from tests.small_tasks import contrastive_data, contrastive_task, pair_data, ranking_task, retrieval_data, siamese_task

TOKENIZER = AutoTokenizer.from_pretrained(TINY)
READ = {"tokenizer": TOKENIZER, "max_length": 16, "on_bad_line": "stop", "prompts": NO_PROMPTS}


def test_the_form_of_dev_data_decides():
    assert dev_reader(None, scored_pairs) is scored_pairs
    assert dev_reader(str(STS), scored_pairs) is scored_pairs
    for path in (RETRIEVAL, RETRIEVAL / "pairs.txt"):
        assert dev_reader(str(path), scored_pairs).func is queries_and_passages
    with pytest.raises(UserError, match="missing: expected a readable text file, got: No such file"):
        dev_reader("missing", scored_pairs)


def test_each_distinct_text_is_an_example():
    data = queries_and_passages(str(RETRIEVAL / "pairs.txt"), **READ)
    lines = [line.split("\t") for line in (RETRIEVAL / "pairs.txt").read_text().splitlines()]
    queries, passages = (list(dict.fromkeys(column)) for column in zip(*lines, strict=True))
    assert (len(data), len(data.queries), len(data.passages)) == (len({*queries, *passages}), 20, len(passages))
    assert not has_labels(data)
    for texts, indices in ((queries, data.queries), (passages, data.passages)):
        batch = data.batch(indices)
        expected = TOKENIZER(texts, truncation=True, max_length=16)["input_ids"]
        assert batch.input_ids.tolist() == [token for row in expected for token in row]


def test_a_prompt_stands_before_each_text_by_its_role():
    texts = read_retrieval_folder(str(RETRIEVAL))
    data = RetrievalDataset.of(TOKENIZER, texts, max_length=16, prompts=Prompts.of_roles("问：", "答："))
    expected = TOKENIZER([f"问：{texts.queries[3]}", f"答：{texts.passages[5]}"], truncation=True, max_length=16)
    for index, tokens in zip((data.queries[3], data.passages[5]), expected["input_ids"], strict=True):
        assert data.batch(np.array([index])).input_ids.tolist() == tokens


def test_a_folder_is_in_the_cache_by_its_content(tmp_path, log_lines):
    read = partial(queries_and_passages, **READ)
    plain = open_dataset(read, str(RETRIEVAL), None)
    for _ in range(2):
        cached = open_dataset(read, str(RETRIEVAL), str(tmp_path))
        for name in ("sentences", "queries", "passages", "own", "relevant", "grades", "is_kept"):
            assert np.array_equal(getattr(cached, name), getattr(plain, name)), name
    assert any("50 examples from the cache" in line for line in log_lines)


def test_a_run_is_recognised_by_the_content_of_the_folder(tmp_path):
    """Not by its name; an option that names no file is recorded as it is."""

    class NoModels:
        def of_model(self, name):
            return {}

    def described(path):
        options = config(tmp_path / "saved", train_data_file=str(STS), dev_data_file=str(path))
        return describe_run(options, NoModels(), precision="fp32", processes=1, negatives=contrastive_task().negatives)

    for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv"):
        (tmp_path / name).write_bytes((RETRIEVAL / name).read_bytes())
    assert described(tmp_path) == described(RETRIEVAL)
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq01\tp01\t1\n")
    assert described(tmp_path) != described(RETRIEVAL)
    assert described("missing")["--dev_data_file"] == "missing"


@pytest.mark.parametrize(
    ("make_task", "train"),
    [(contrastive_task, contrastive_data(24)), pytest.param(siamese_task, pair_data(), marks=pytest.mark.slow)],
)
def test_the_best_weights_are_those_of_the_best_ndcg(make_task, train, tmp_path, log_lines):
    settings = {"save_steps": 1, "save_best_model": True, "learning_rate": 1e-2, "batch_size": 8, "max_steps": 4}
    trained(tmp_path, make_task(), train, retrieval_data(), **settings)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "metric" in line]
    assert {line["metric"] for line in evaluations} == {"dev_ndcg@10"}
    best = max(evaluations, key=lambda line: line["dev_ndcg@10"])
    assert f"best dev nDCG@10: {best['dev_ndcg@10']:.5f} at step {best['step']}" in log_lines
    assert any(line.startswith(f"weights of step {best['step']}: ") for line in log_lines)
    shown = [f"MRR@10: {line['dev_mrr@10']:.5f}, nDCG@10: {line['dev_ndcg@10']:.5f}" for line in evaluations]
    assert [line for line in log_lines if line.startswith("MRR@10")] == shown
    assert "| step | dev_ndcg@10 | dev_mrr@10 |" in (tmp_path / "README.md").read_text()


class Ranked:
    """What an evaluation left: the query 0 found its passage at once, 1 as the third, 2 and 3 not at all."""

    hits = type("Hits", (), {"queries": np.array([1, 0, 1]), "ranks": np.array([7, 1, 3]), "grades": np.ones(3)})
    hit_passages = np.array([0, 1, 2])
    first, first_scores = np.array([1, 4, 4, 3]), np.array([0.9, 0.8, 0.7, 0.6])


def test_errors_are_the_queries_whose_first_passage_is_not_relevant():
    source = type("Source", (), {"queries": list("甲乙丙丁"), "passages": list("abcde")})
    source.relevant = np.array([[0, 1], [1, 0], [1, 2], [2, 3], [3, 0], [3, 2]])
    errors = not_found_first(Ranked, source)
    assert errors.header == ["query", "first", "score", "best_relevant", "its_rank"]
    assert errors.rows == [
        ["丙", "e", "0.700000", "d", "over 100"],
        ["丁", "d", "0.600000", "a", "over 100"],
        ["乙", "e", "0.800000", "c", "3"],
    ]


def test_only_embeddings_search():
    with pytest.raises(UserError, match="expected an embedding model to search with, got one of run_classifier.py"):
        ranking_task().read_retrieval(["c", "q", "r"], "stop")
