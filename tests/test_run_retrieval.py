"""Retrieval as a user starts it: dev data of the embedding scripts, `evaluate`, `compare`."""

import json

import pytest

from bertorch import compare, evaluate
from bertorch.cli import parse
from bertorch.errors import UserError
from tests.conftest import MATCHING, PARAPHRASES, RETRIEVAL, SENTENCES, run_processes, run_script
from tests.log_lines import RETRIEVAL_LINE, command, last_result, matches

FILES = {
    name: str(RETRIEVAL / f"{name}.{end}")
    for name, end in (("corpus", "jsonl"), ("queries", "jsonl"), ("qrels", "tsv"))
}
SHORT = {"pooling_mode": "mean", "max_steps": 2, "save_steps": 1, "batch_size": 8, "max_seq_length": 32}


def options(folder, target, **settings):
    return evaluate.EvaluateConfig(model_dir=str(folder), output_dir=str(target), **settings)


def report_of(target):
    return json.loads((target / "report.json").read_text())


THREE = {f"{name}_file": path for name, path in FILES.items()}


@pytest.mark.parametrize(("script", "train", "dev"), [
    ("run_batchneg.py", PARAPHRASES, RETRIEVAL),
    pytest.param("run_simcse.py", SENTENCES, RETRIEVAL / "pairs.txt", marks=pytest.mark.slow),
    pytest.param("run_sentencebert.py", MATCHING / "train.txt", RETRIEVAL, marks=pytest.mark.slow),
])  # fmt: skip
def test_log_lines_to_the_letter(script, train, dev, tmp_path):
    done = run_script(*command(script, train, dev, tmp_path, **SHORT))
    assert len(matches(RETRIEVAL_LINE, done.stderr)) == 2
    assert 0.2 < last_result(RETRIEVAL_LINE, done.stderr) < 1
    assert "best dev nDCG@10: 0." in done.stderr


def test_three_files_and_their_folder_are_the_same(folders, tmp_path):
    evaluate.run(options(folders["simcse"], tmp_path / "files", **THREE))
    evaluate.run(options(folders["simcse"], tmp_path / "folder", input_file=str(RETRIEVAL)))
    ours, theirs = report_of(tmp_path / "files"), report_of(tmp_path / "folder")
    assert ours.pop("data") == ", ".join(FILES.values())
    assert theirs.pop("data") == str(RETRIEVAL)
    assert ours == theirs
    assert (ours["queries"], ours["queries_without_relevant"], ours["passages"]) == (20, 0, 30)
    assert ours["recall@100"] == ours["accuracy@100"] == 1
    for name in ("ndcg@10", "mrr@10", "map@100", "recall@1"):
        low, high = ours["intervals"][name]
        assert low < ours[name] < high
        assert ours[name] == pytest.approx(ours["measures"][name]["value"], rel=1e-12)  # the mean in another order
    header, *errors = [line.split("\t") for line in (tmp_path / "files" / "errors.tsv").read_text().splitlines()]
    assert header == ["query", "first", "score", "best_relevant", "its_rank"]
    assert len(errors) == round(20 * (1 - ours["accuracy@1"]))


def test_models_are_compared_query_by_query(folders, tmp_path, log_lines):
    for name in ("simcse", "batchneg"):
        evaluate.run(options(folders[name], tmp_path / name, **THREE))
    names = (str(tmp_path / "simcse"), str(tmp_path / "batchneg"))
    for measure, test in ((None, "randomisation"), ("recall@5", "randomisation"), ("accuracy@1", "McNemar")):
        result = compare.compare(compare.CompareConfig(folders=names, measure=measure, draws=200))
        assert result["measure"] == (measure or "ndcg@10")
        assert test in result["comparisons"][0]["test"]
        assert result["examples"] == 20
    evaluate.run(options(folders["simcse"], tmp_path / "pairs", input_file=str(RETRIEVAL / "pairs.txt")))
    with pytest.raises(UserError, match="got one of a file with another content"):
        compare.compare(compare.CompareConfig(folders=(names[0], str(tmp_path / "pairs"))))


@pytest.mark.parametrize("name", ["simcse", "prompts", "cosent"])
def test_the_report_is_that_of_sentence_transformers(name, folders, tmp_path):
    """Whose gain is whether a passage is relevant: hence the pairs, whose grades are all 1.

    With prompts queries stand after one and passages after the other; `--matryoshka` gives a table of widths.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    path = RETRIEVAL / "pairs.txt"
    evaluate.run(options(folders[name], tmp_path / "pairs", input_file=str(path)))
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    relevant = {query: {passage for each, passage in rows if each == query} for query, _ in rows}
    texts = ({query: query for query, _ in rows}, {passage: passage for _, passage in rows})
    cuts = {"accuracy_at_k": [1, 5, 10], "precision_recall_at_k": [1, 5, 10], "mrr_at_k": [10], "ndcg_at_k": [10]}
    peer = SentenceTransformer(str(folders[name]), device="cpu")

    def theirs(width: int | None = None) -> dict[str, float]:
        return InformationRetrievalEvaluator(
            *(*texts, relevant), map_at_k=[100], show_progress_bar=False, truncate_dim=width, **cuts
        )(peer)

    ours, expected = report_of(tmp_path / "pairs"), theirs()
    for measure in ("ndcg@10", "mrr@10", "map@100", "accuracy@1", "accuracy@5", "recall@1", "recall@10"):
        assert ours[measure] == pytest.approx(expected[f"cosine_{measure}"], abs=1e-9), measure
    assert list(ours.get("dimensions", {})) == (["128", "64", "32"] if name == "cosent" else [])
    for width, numbers in ours.get("dimensions", {}).items():
        expected = theirs(int(width))
        assert numbers == {measure: pytest.approx(expected[f"cosine_{measure}"], abs=1e-9) for measure in numbers}


@pytest.mark.slow
def test_two_processes_report_what_one_does(folders, tmp_path):
    evaluate.run(options(folders["batchneg"], tmp_path / "one", **THREE))
    run_processes(2, evaluate.run, options(folders["batchneg"], tmp_path / "two", **THREE))
    one, two = report_of(tmp_path / "one"), report_of(tmp_path / "two")
    for name, value in one.items():
        assert two[name] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value)


def test_a_model_of_sentencebert_draws_no_confusions_of_retrieval(folders, tmp_path):
    with pytest.raises(
        UserError, match="--plot draws the confusion matrix of classes, which retrieval has not; leave it out"
    ):
        evaluate.run(options(folders["matching"], tmp_path, input_file=str(RETRIEVAL), plot=True))
    with pytest.raises(UserError, match="--calibrate is fitted to labels, which retrieval has not; leave it out"):
        evaluate.run(options(folders["matching"], tmp_path, input_file=str(RETRIEVAL), calibrate=True))
    assert "temperature" not in (folders["matching"] / "config.json").read_text()


@pytest.mark.parametrize(("given", "message"), [
    ({}, "expected --input_file, or --corpus_file, --queries_file and --qrels_file; got none of them"),
    ({"corpus_file": "c"}, "belong together; add --queries_file, --qrels_file"),
    ({"queries_file": "q", "qrels_file": "r"}, "belong together; add --corpus_file"),
    ({"input_file": "i", "qrels_file": "r"}, "both name what to evaluate on; choose one"),
    ({**THREE, "plot": None}, "--plot draws the confusion matrix of classes, which retrieval has not; leave it out"),
    ({**THREE, "calibrate": None}, "--calibrate is fitted to labels, which retrieval has not; leave it out"),
])  # fmt: skip
def test_what_to_evaluate_on_is_said_once(given, message, capsys):
    line = ["--model_dir", "m", "--output_dir", "o"]
    for name, value in given.items():
        line += [f"--{name}", *([] if value is None else [value])]
    with pytest.raises(SystemExit) as raised:
        parse(evaluate.EvaluateConfig, line)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_a_classifier_does_not_search(folders, tmp_path):
    with pytest.raises(UserError, match="expected an embedding model to search with, got one of run_classifier.py"):
        evaluate.run(options(folders["classifier"], tmp_path, **THREE))
