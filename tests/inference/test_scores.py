"""Folders of scores and rankings: in `CrossEncoder` and transformers, in Python, in the commands."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from bertorch import evaluate, load, predict
from bertorch.data.predictions import read_evaluation
from bertorch.errors import UserError
from bertorch.inference import engine
from bertorch.inference.load import is_own, load_trained
from bertorch.tasks.metadata import KEY
from bertorch.tasks.ranking import RankingTask
from bertorch.tasks.ranking_metric import Candidates, ranking_measures
from bertorch.tasks.score import ScoreTask
from bertorch.training.saving import publish
from tests.conftest import RANKING, SCORES, TINY, run_processes
from tests.log_lines import RANKING_LINE, SCORE_LINE, last_result

sentence_transformers = pytest.importorskip("sentence_transformers")

MAX_LENGTH = 16
ROWS = [line.split("\t") for line in (RANKING / "dev.txt").read_text().splitlines()]
PAIRS = [(query, candidate) for query, candidate, _ in ROWS] + [("很长的问题，" * 20, "答案，" * 30), ("问", "答" * 90)]
TEXTS = [line.split("\t")[0] for line in (SCORES / "dev.txt").read_text().splitlines()] + ["早餐丰富，" * 40]
SHORT = ("能退吗？", "可以退")  # a pipeline does not cut
QUERY, CANDIDATES = ROWS[0][0], [candidate for _, candidate, _ in ROWS[:7]]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """So that there are several."""
    monkeypatch.setattr(engine, "WINDOW", 25)


def write(folder, task) -> None:
    folder.mkdir(exist_ok=True)
    publish(str(folder), task.model.weights.state_dict(), task.savables, before=lambda files: None)


def save(folder, kind, *, text_pair: bool):
    """The folder of a task with a fresh head, which cuts at few tokens."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    task = kind.from_pretrained(str(TINY), tokenizer, (), text_pair=text_pair, max_seq_length=MAX_LENGTH)
    write(folder, task)
    return folder


def scores_of(predictions) -> list[float]:
    return [prediction.score for prediction in predictions]


def cross_encoder(folder):
    return sentence_transformers.CrossEncoder(str(folder), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ScoreTask, RankingTask])
def test_cross_encoder_gives_our_scores_of_pairs_that_are_cut_too(kind, tmp_path):
    save(tmp_path, kind, text_pair=True)
    peer, model = cross_encoder(tmp_path), load(tmp_path)
    assert is_own(str(tmp_path))
    assert type(model.task) is kind
    assert isinstance(peer.activation_fn, torch.nn.Identity)
    assert peer.max_seq_length == MAX_LENGTH
    expected = peer.predict(PAIRS, show_progress_bar=False)
    np.testing.assert_allclose(scores_of(model.predict(PAIRS)), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1
    ranked = model.rank(QUERY, CANDIDATES)
    theirs = peer.rank(QUERY, CANDIDATES, show_progress_bar=False)
    assert [each.index for each in ranked] == [each["corpus_id"] for each in theirs]
    np.testing.assert_allclose([each.score for each in ranked], [each["score"] for each in theirs], atol=1e-5)
    longer = load(tmp_path, max_seq_length=64)
    assert abs(longer.predict(PAIRS[-1:])[0].score - expected[-1]) > 1e-4


def test_transformers_gives_our_scores_of_texts(tmp_path):
    """CrossEncoder takes pairs only."""
    save(tmp_path, ScoreTask, text_pair=False)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = [model(**tokenizer(text, truncation=True, return_tensors="pt")).logits.item() for text in TEXTS]
    np.testing.assert_allclose(scores_of(load(tmp_path).predict(TEXTS)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", [ScoreTask, RankingTask])
def test_transformers_gives_our_scores(kind, tmp_path):
    save(tmp_path, kind, text_pair=True)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    ours = scores_of(load(tmp_path).predict([SHORT, *PAIRS]))
    with torch.no_grad():
        theirs = [
            model(**tokenizer(*pair, truncation=True, return_tensors="pt")).logits.item() for pair in [SHORT, *PAIRS]
        ]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert model.config.problem_type == "regression"
    classify = pipeline("text-classification", model=str(tmp_path), device="cpu")
    first, second = SHORT
    assert classify({"text": first, "text_pair": second}) == {
        "label": "score",
        "score": pytest.approx(ours[0], abs=1e-5),
    }


def test_a_folder_is_the_same_after_a_round_trip(tmp_path):
    for kind in (ScoreTask, RankingTask):
        save(tmp_path / "first", kind, text_pair=True)
        task = load_trained(tmp_path / "first")
        assert (task.label_names, task.settings(), task.max_seq_length) == ((), {"text_pair": True}, MAX_LENGTH)
        write(tmp_path / "second", task)
        first, second = ((tmp_path / name / "config.json").read_text() for name in ("first", "second"))
        assert json.loads(first) == json.loads(second)
        assert json.loads(first)[KEY]["task"] == kind.name
        weights = load_trained(tmp_path / "second").model.weights.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in task.model.weights.state_dict().items())


@pytest.mark.parametrize("saver", ["transformers", "CrossEncoder"])
@pytest.mark.parametrize("activation", [torch.nn.Sigmoid, torch.nn.Identity])
def test_a_folder_of_others_with_one_logit_gives_the_logit(saver, activation, tmp_path):
    torch.manual_seed(0)
    peer = sentence_transformers.CrossEncoder(
        str(TINY), num_labels=1, max_length=MAX_LENGTH, activation_fn=activation(), device="cpu"
    )
    if saver == "CrossEncoder":
        peer.save_pretrained(str(tmp_path))
    else:
        peer.model.save_pretrained(tmp_path)
        peer.tokenizer.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert (type(model.task), model.task.max_seq_length) == (ScoreTask, MAX_LENGTH)
    expected = peer.predict(PAIRS, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    np.testing.assert_allclose(scores_of(model.predict(PAIRS)), expected, atol=1e-5)
    assert [each.index for each in model.rank(QUERY, CANDIDATES)] == [
        each["corpus_id"] for each in peer.rank(QUERY, CANDIDATES, show_progress_bar=False)
    ]


def test_what_cross_encoder_made_of_our_folder_is_its_own(tmp_path):
    save(tmp_path / "ours", RankingTask, text_pair=True)
    peer = cross_encoder(tmp_path / "ours")
    with torch.no_grad():
        peer.model.classifier.weight.mul_(-3.0)
    peer.save_pretrained(str(tmp_path / "theirs"))
    assert not is_own(str(tmp_path / "theirs"))
    expected = peer.predict(PAIRS, show_progress_bar=False)
    np.testing.assert_allclose(scores_of(load(tmp_path / "theirs").predict(PAIRS)), expected, atol=1e-5)


def test_ties_are_ranked_as_they_came(tmp_path):
    model = load(save(tmp_path, RankingTask, text_pair=True), batch_size=2)
    ranked = model.rank(QUERY, ["乙", "甲", "甲", "乙", "甲"])
    order = [each.index for each in ranked]
    assert order in ([0, 3, 1, 2, 4], [1, 2, 4, 0, 3])
    assert model.rank(QUERY, (text for text in CANDIDATES), top_k=2) == model.rank(QUERY, CANDIDATES)[:2]
    assert model.rank(QUERY, []) == []


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda model: model.rank(QUERY, "甲"), "expected a list of candidates, got the text '甲'"),
        (lambda model: model.rank(QUERY, ["甲", 3]), "expected input 2 to be a pair, a tuple of two texts, got"),
        (lambda model: model.rank(QUERY, ["甲"], top_k=0), "rank: expected a top_k of at least 1, got 0"),
        (lambda model: model.predict(["甲"]), "expected input 1 to be a pair"),
        (lambda model: model.encode(["甲"]), "to encode with, got one of run_classifier.py --problem_type ranking"),
    ],
)
def test_a_wrong_use_is_told(use, message, folders):
    with pytest.raises(UserError) as error:
        use(load(folders["ranking"]))
    assert message in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("classifier", "expected a reranking model to rank with, got one of run_classifier.py"),
        ("simcse", "expected a reranking model to rank with, got one of run_simcse.py"),
        ("ner", "expected a reranking model to rank with, got one of run_ner.py"),
        (
            "score",
            "expected a model of pairs to rank with, got one of run_classifier.py --problem_type score for single",
        ),
    ],
)
def test_others_do_not_rank(name, message, folders, tmp_path):
    with pytest.raises(UserError, match=message):
        load(folders[name]).rank(QUERY, CANDIDATES)
    (tmp_path / "in.txt").write_text("问\t答\n")
    with pytest.raises(UserError, match=message):
        run_predict(folders[name], tmp_path, ranked=True, no_header=True)
    assert not (tmp_path / "out.tsv").exists()


def test_texts_are_not_ranked(tmp_path):
    """By a folder that does not say whether it takes pairs."""
    save(tmp_path / "model", ScoreTask, text_pair=True)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config[KEY]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "in.txt").write_text("问答\n答问\n")
    with pytest.raises(UserError, match="expected pairs to rank .query⇥candidate., got the text '问答'"):
        run_predict(tmp_path / "model", tmp_path, ranked=True)
    assert not (tmp_path / "out.tsv").exists()
    assert len(run_predict(tmp_path / "model", tmp_path)) == 3


# Commands


def run_predict(folder, tmp_path, **settings):
    options = {
        "model_dir": str(folder),
        "input_file": str(tmp_path / "in.txt"),
        "output_file": str(tmp_path / "out.tsv"),
    }
    predict.run(predict.PredictConfig(**(options | {"overwrite": True} | settings)))
    return [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]


def test_predict_writes_raw_scores_in_order(folders, tmp_path):
    for name, inputs in (("score", TEXTS), ("ranking", PAIRS)):
        lines = [each if name == "score" else "\t".join(each) for each in inputs]
        (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in lines))
        (header,), *rows = run_predict(folders[name], tmp_path)
        assert header == "score"
        expected = scores_of(load(folders[name]).predict(inputs))
        np.testing.assert_allclose(np.array(rows, dtype=float)[:, 0], expected, atol=1e-5)


def write_candidates(tmp_path, seed=0) -> list[tuple[str, str]]:
    """Pairs in any order, so that those of a query are not adjacent."""
    pairs = [PAIRS[index] for index in np.random.default_rng(seed).permutation(len(ROWS))]
    (tmp_path / "in.txt").write_text("".join(f"{query}\t{candidate}\n" for query, candidate in pairs))
    return pairs


def test_predict_ranks_the_candidates_of_each_query(folders, tmp_path):
    pairs = write_candidates(tmp_path)
    header, *rows = run_predict(folders["ranking"], tmp_path, ranked=True)
    assert header == ["query", "candidate", "score", "rank"]
    model, expected = load(folders["ranking"]), []
    for query in dict.fromkeys(query for query, _ in pairs):
        candidates = [candidate for other, candidate in pairs if other == query]
        for rank, each in enumerate(model.rank(query, candidates), start=1):
            expected.append((query, candidates[each.index], each.score, rank))
    assert [(query, candidate, int(rank)) for query, candidate, _, rank in rows] == [
        (query, candidate, rank) for query, candidate, _, rank in expected
    ]
    np.testing.assert_allclose([float(row[2]) for row in rows], [row[2] for row in expected], atol=1e-5)
    assert run_predict(folders["ranking"], tmp_path, ranked=True, no_header=True) == rows


def _ranked_by(options) -> None:
    predict.run(predict.PredictConfig(**options))


@pytest.mark.slow
def test_two_processes_rank_as_one(folders, tmp_path):
    write_candidates(tmp_path)
    one = run_predict(folders["ranking"], tmp_path, ranked=True)
    names = {"input_file": str(tmp_path / "in.txt"), "output_file": str(tmp_path / "two.tsv")}
    run_processes(2, _ranked_by, {"model_dir": str(folders["ranking"]), "ranked": True, **names})
    two = [line.split("\t") for line in (tmp_path / "two.tsv").read_text().splitlines()]
    assert [row[:2] + row[3:] for row in two] == [row[:2] + row[3:] for row in one]


def test_ranked_lists_need_the_whole_input():
    with pytest.raises(UserError, match="--ranked needs the whole input, and --flush"):
        predict.PredictConfig(model_dir="m", input_file="-", output_file="-", ranked=True, flush=True)


def run_evaluate(folder, data, target, **settings):
    options = {"model_dir": str(folder), "input_file": str(data), "output_dir": str(target)} | settings
    evaluate.run(evaluate.EvaluateConfig(**options))
    errors = [line.split("\t") for line in (target / "errors.tsv").read_text().splitlines()]
    return json.loads((target / "report.json").read_text()), errors


def test_evaluate_reports_correlations_and_all_examples_by_error(folders, tmp_path):
    folder, log = folders.run("score")
    report, (header, *rows) = run_evaluate(folder, SCORES / "dev.txt", tmp_path)
    lines = [line.split("\t") for line in (SCORES / "dev.txt").read_text().splitlines()]
    gold, predicted = (
        np.array([float(score) for _, score in lines]),
        scores_of(load(folder).predict(t for t, _ in lines)),
    )
    assert report["spearman"] == pytest.approx(stats.spearmanr(gold, predicted).statistic, abs=1e-4)
    assert report["pearson"] == pytest.approx(stats.pearsonr(gold, predicted).statistic, abs=1e-4)
    assert report["mse"] == pytest.approx(((gold - predicted) ** 2).mean(), abs=1e-4)
    assert report["mae"] == pytest.approx(np.abs(gold - predicted).mean(), abs=1e-4)
    assert report["spearman"] == pytest.approx(last_result(SCORE_LINE, log), abs=1e-3)
    assert header == ["number", "score", "predicted", "squared_error", "a"]
    assert sorted(int(row[0]) for row in rows) == list(range(1, len(lines) + 1))
    squared = [float(row[3]) for row in rows]
    assert squared == sorted(squared, reverse=True)
    assert all(lines[int(row[0]) - 1] == [row[4], row[1]] for row in rows)
    table = read_evaluation(str(tmp_path)).table
    assert table.columns["gold"] == gold.tolist()
    assert table.columns["score"] == pytest.approx(predicted, abs=1e-4)
    (tmp_path / "same.txt").write_text("好\t1\n坏\t1\n")
    with pytest.raises(UserError, match="expected scores that differ"):
        run_evaluate(folder, tmp_path / "same.txt", tmp_path / "same")


def test_evaluate_reports_a_ranking_and_the_queries_that_went_wrong(folders, tmp_path):
    folder, log = folders.run("ranking")
    order = np.random.default_rng(1).permutation(len(ROWS))
    rows = [ROWS[index] for index in order] + [["没有答案的问题？", "不相关", "0"]]
    (tmp_path / "dev.txt").write_text("".join("\t".join(row) + "\n" for row in rows))
    report, (header, *errors) = run_evaluate(folder, tmp_path / "dev.txt", tmp_path / "report")
    rows.pop()
    model = load(folder)
    scores = np.array(scores_of(model.predict([(query, candidate) for query, candidate, _ in rows])))
    numbers = {query: number for number, query in enumerate(dict.fromkeys(query for query, *_ in rows))}
    relevances = np.array([float(relevance) for *_, relevance in rows])
    expected = ranking_measures(Candidates(scores, relevances, np.array([numbers[query] for query, *_ in rows])))
    assert {name: report[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert (report["queries"], report["examples"]) == (len(numbers), len(rows))
    table = read_evaluation(str(tmp_path / "report")).table
    assert table.columns["gold"] == [[float(r) for other, _, r in rows if other == query] for query in numbers]
    assert [sum(table.columns[name]) / len(numbers) for name in expected] == pytest.approx(list(expected.values()))
    assert report["mrr@10"] == pytest.approx(last_result(RANKING_LINE, log), abs=1e-5)
    assert header == ["query", "first", "score", "best_relevant", "its_score", "its_rank"]
    assert len(errors) == round((1 - report["hits@1"]) * len(numbers)) > 0
    margins = []
    for query, first, score, relevant, its_score, rank in errors:
        of_query = [(candidate, relevance) for other, candidate, relevance in rows if other == query]
        ranked = [of_query[each.index] for each in model.rank(query, [candidate for candidate, _ in of_query])]
        assert ranked[0] == (first, "0")
        assert ranked[int(rank) - 1] == (relevant, "1")
        assert all(relevance == "0" for _, relevance in ranked[: int(rank) - 1])
        margins.append(float(score) - float(its_score))
    assert margins == sorted(margins, reverse=True)


def test_a_model_that_does_not_rank_is_reported(folders, tmp_path):
    save(tmp_path / "model", RankingTask, text_pair=True)
    weights = torch.load(tmp_path / "model" / "pytorch_model.bin", weights_only=True)
    weights["classifier.weight"].zero_()
    torch.save(weights, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match="expected scores that tell candidates apart, got 0 for all 80 lines"):
        run_evaluate(tmp_path / "model", RANKING / "dev.txt", tmp_path / "report")
