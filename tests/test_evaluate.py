"""The command as a user starts it, on folders of all scripts."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from bertorch import compare, evaluate, figures, load
from bertorch.data.predictions import read_evaluation
from bertorch.errors import UserError
from bertorch.tasks.base import Errors
from bertorch.tasks.metrics import class_report
from tests.conftest import MATCHING, NER, NESTED, NLI, REVIEWS, STS, run_processes
from tests.log_lines import F1_LINE, last_result


def run(folder, data, target, **settings):
    options = {"model_dir": str(folder), "input_file": str(data), "output_dir": str(target)} | settings
    evaluate.run(evaluate.EvaluateConfig(**options))
    errors = [line.split("\t") for line in (target / "errors.tsv").read_text().splitlines()]
    return json.loads((target / "report.json").read_text()), errors


def predicted_labels(predictions) -> list[str]:
    return [each.label for each in predictions]


def test_a_classifier(folders, tmp_path, log_lines):
    report, (header, *errors) = run(folders["classifier"], REVIEWS / "dev.txt", tmp_path / "report")
    lines = [line.split("\t") for line in (REVIEWS / "dev.txt").read_text().splitlines()]
    predictions = load(folders["classifier"]).predict([text for text, _ in lines])
    gold, predicted = [label for _, label in lines], [each.label for each in predictions]
    assert report["accuracy"] == pytest.approx(np.mean(np.array(gold) == predicted))
    assert report["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert header == ["number", "label", "predicted", "probability", "loss", "a"]
    expected = [
        [str(number), label, each.label, f"{each.probability:.3f}", f"{-math.log(each.probabilities[label]):.2f}", text]
        for number, ((text, label), each) in enumerate(zip(lines, predictions, strict=True), start=1)
        if label != each.label
    ]
    expected.sort(key=lambda row: predictions[int(row[0]) - 1].probabilities[row[1]])  # the largest loss first
    assert [[*row[:3], f"{float(row[3]):.3f}", f"{float(row[4]):.2f}", row[5]] for row in errors] == expected
    rows = [json.loads(line) for line in (tmp_path / "report" / "predictions.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == list(range(1, len(lines) + 1))
    assert [row["gold"] for row in rows] == gold
    assert [row["predicted"] for row in rows] == predicted_labels(predictions)
    assert [row["right"] for row in rows] == [a == b for a, b in zip(gold, predicted_labels(predictions), strict=True)]
    assert [row["probability"] for row in rows] == pytest.approx([each.probability for each in predictions], abs=1e-4)
    for name in ("accuracy", "macro_f1"):
        low, high = report["intervals"][name]
        assert low < report[name] < high
    assert any(re.fullmatch(r"accuracy: 0.\d{5}, 95 % interval 0.\d{5} to 0.\d{5}", line) for line in log_lines)
    assert any(line.startswith("accuracy: 0.") for line in log_lines)
    assert any(line.startswith("labels, negative: precision 0.") for line in log_lines)


@pytest.mark.slow
def test_every_width_of_an_embedding(folders, tmp_path, log_lines):
    report, _ = run(folders["cosent"], STS, tmp_path / "report")
    first, second, scores = zip(*(line.split("\t") for line in STS.read_text().splitlines()), strict=True)
    assert list(report["dimensions"]) == ["128", "64", "32"]
    for width, numbers in report["dimensions"].items():
        u, v = (load(folders["cosent"]).encode(texts, dimensions=int(width)) for texts in (first, second))
        expected = stats.spearmanr((u * v).sum(axis=1), np.array(scores, float)).statistic
        assert numbers["spearman"] == pytest.approx(expected, abs=1e-4)
    assert report["dimensions"]["128"] == {name: report[name] for name in ("spearman", "pearson")}
    assert any(re.fullmatch(r"dimensions, 32: spearman 0.\d{5}, pearson 0.\d{5}", line) for line in log_lines)


def test_a_file_of_json_has_the_report_of_columns(folders, tmp_path):
    lines = [line.split("\t") for line in (REVIEWS / "dev.txt").read_text().splitlines()[:40]]
    (tmp_path / "dev.tsv").write_text("\n".join("\t".join(line) for line in lines))
    objects = [{"text": text.replace("，", "\t"), "label": label} for text, label in lines]
    (tmp_path / "dev.json").write_text("\n".join(map(json.dumps, objects)))
    (tmp_path / "same.json").write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in lines))
    report, errors = run(folders["classifier"], tmp_path / "dev.tsv", tmp_path / "columns")
    of_file = {"data": "", "data_digest": ""}
    ours, our_errors = run(folders["classifier"], tmp_path / "same.json", tmp_path / "json")
    assert (ours | of_file, our_errors) == (report | of_file, errors)
    _, (_, *with_tabs) = run(folders["classifier"], tmp_path / "dev.json", tmp_path / "tabs")
    assert len(with_tabs) > 0
    assert {len(row) for row in with_tabs} == {6}
    for number, *_, text in with_tabs:
        assert text == lines[int(number) - 1][0].replace("，", " ")


@pytest.mark.parametrize("name", ["pair classifier", "nli"])
def test_pairs_in_json_have_the_report_of_columns(name, folders, tmp_path):
    lines = [line.split("\t") for line in (NLI / "dev.txt").read_text().splitlines()[:40]]
    (tmp_path / "dev.tsv").write_text("\n".join("\t".join(line) for line in lines))
    objects = [dict(zip(("text_a", "text_b", "label"), line, strict=True)) for line in lines]
    (tmp_path / "dev.json").write_text("\n".join(map(json.dumps, objects)))
    report, errors = run(folders[name], tmp_path / "dev.tsv", tmp_path / "columns")
    of_file = {"data": "", "data_digest": ""}
    ours, our_errors = run(folders[name], tmp_path / "dev.json", tmp_path / "json")
    assert (ours | of_file, our_errors) == (report | of_file, errors)


def test_the_log_of_many_classes_has_the_most_frequent_and_the_worst(log_lines, tmp_path):
    names = [f"label{index}" for index in range(1000)]
    gold = np.repeat(np.arange(900), np.arange(900) % 30 + 1)  # the last hundred labels have no example
    predicted = np.where(gold % 100 == 7, gold + 1, gold)
    report = class_report(gold, predicted, names)
    config = evaluate.EvaluateConfig(model_dir="", input_file="", output_dir=str(tmp_path))
    evaluate._write(report, Errors(["number"], []), config)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    told = [re.match(r"labels, (.*), (label\d+): .* f1 (.*), support (\d+)", line) for line in log_lines]
    frequent, worst = (
        {each[2]: (float(each[3]), int(each[4])) for each in told if each and each[1] == part}
        for part in ("most frequent", "worst")
    )
    assert len(told) < 30
    assert len(frequent) == len(worst) == 10
    assert {support for _, support in frequent.values()} == {30}
    assert {name: f1 for name, (f1, _) in worst.items() if f1 == 0} == {
        f"label{index}07" if index else "label7": 0 for index in range(9)
    }


@pytest.mark.parametrize(("name", "data", "thresholds"), [("matching", MATCHING, ["1"]), ("nli", NLI, None)])
def test_sentence_bert_has_thresholds(name, data, thresholds, folders, tmp_path):
    report, errors = run(folders[name], data / "dev.txt", tmp_path)
    labels = (data / "labels.txt").read_text().split()
    lines = [line.split("\t") for line in (data / "dev.txt").read_text().splitlines()]
    assert list(report["cosine"]["thresholds"]) == (thresholds or labels)
    assert report["accuracy"] == pytest.approx(1 - (len(errors) - 1) / len(lines))
    if name == "matching":
        cosines = [each.cosine for each in load(folders[name]).predict([(a, b) for a, b, _ in lines])]
        scores = [int(score) for *_, score in lines]
        assert report["cosine"]["spearman"] == pytest.approx(stats.spearmanr(cosines, scores).statistic, abs=1e-4)
        best = report["cosine"]["thresholds"]["1"]
        taken = np.array(cosines) >= best["accuracy_threshold"]
        assert best["accuracy"] == pytest.approx((taken == np.array(scores)).mean(), abs=1e-6)


def test_sentence_embeddings(folders, tmp_path):
    report, errors = run(folders["simcse"], STS, tmp_path / "scores")
    lines = [line.split("\t") for line in STS.read_text().splitlines()]
    cosines = [each.cosine for each in load(folders["simcse"]).predict([(a, b) for a, b, _ in lines])]
    scores = [float(score) for *_, score in lines]
    assert report["spearman"] == pytest.approx(stats.spearmanr(cosines, scores).statistic, abs=1e-4)
    assert report["pearson"] == pytest.approx(stats.pearsonr(cosines, scores).statistic, abs=1e-4)
    assert "threshold" not in report
    assert len(errors) == 1
    assert report["intervals"].keys() == {"spearman", "pearson"}
    table = read_evaluation(str(tmp_path / "scores")).table
    assert table.columns["gold"] == scores
    assert table.columns["cosine"] == pytest.approx(cosines, abs=1e-4)
    report, errors = run(folders["simcse"], MATCHING / "dev.txt", tmp_path / "matching")
    assert report["threshold"]["accuracy"] == pytest.approx(1 - (len(errors) - 1) / report["examples"])


@pytest.mark.parametrize("first", ["", "\ufffd\t"])
def test_a_folder_that_does_not_say_whether_it_takes_pairs(first, folders, tmp_path):
    """Of an earlier version; the first line is malformed."""
    folder = tmp_path / "earlier"
    shutil.copytree(folders["pair classifier"], folder)
    config = json.loads((folder / "config.json").read_text())
    del config["bertorch"]
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "dev.txt").write_text(f"{first}bad\n{(NLI / 'dev.txt').read_text()}")
    report, _ = run(folder, tmp_path / "dev.txt", tmp_path / "report", on_bad_line="skip", max_seq_length=64)
    expected, _ = run(folders["pair classifier"], NLI / "dev.txt", tmp_path / "now", max_seq_length=64)
    assert report["accuracy"] == expected["accuracy"]


def test_entities(folders, tmp_path):
    folder, log = folders.run("ner with a CRF")
    report, (header, *errors) = run(folder, NER / "dev.json", tmp_path)
    assert report["strict"]["micro average"]["f1"] == pytest.approx(last_result(F1_LINE, log), abs=1e-5)
    assert report["lenient"]["micro average"]["f1"] >= report["strict"]["micro average"]["f1"]
    assert list(report["strict"]) == ["PER", "LOC", "ORG", "micro average"]
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [str(row["number"]) for row in rows if row["gold"] != row["predicted"]] == [row[0] for row in errors]
    assert report["measures"]["f1"]["value"] == pytest.approx(report["strict"]["micro average"]["f1"])
    assert header == ["number", "entities", "predicted", "text"]
    assert all(row[1] != row[2] for row in errors)


@pytest.mark.slow
def test_entities_that_overlap(folders, tmp_path):
    folder, log = folders.run("nested")
    report, (header, *errors) = run(folder, NESTED / "dev.json", tmp_path)
    strict = report["strict"]["micro average"]
    assert strict["f1"] == pytest.approx(last_result(F1_LINE, log), abs=1e-5)
    assert strict["f1"] > 0.6
    gold = [json.loads(line)["entities"] for line in (NESTED / "dev.json").read_text().splitlines()]
    assert strict["support"] == sum(map(len, gold))
    assert "token_accuracy" not in report
    assert header == ["number", "entities", "predicted", "text"]
    assert errors
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    expected = [sorted([each["start"], each["end"], each["type"]] for each in entities) for entities in gold]
    assert [sorted([start, end, type_] for type_, start, end in row["gold"]) for row in rows] == expected
    assert [row["number"] for row in rows if row["gold"] != row["predicted"]] == [int(row[0]) for row in errors]
    text, number = errors[0][3], int(errors[0][0])
    shown = [each.split(" ", 2) for each in errors[0][1].split("; ")] if errors[0][1] else []
    assert sorted(where for _, where, _ in shown) == sorted(
        f"{each['start']}:{each['end']}" for each in gold[number - 1]
    )
    assert all(text[slice(*map(int, where.split(":")))] == words for _, where, words in shown)


@pytest.mark.slow
def test_either_form_of_a_file_is_the_same(folders, tmp_path):
    """Flat entities as tags, as entities of a text, and of tokens; of a head that has tags, and one that has not."""
    lines = [json.loads(line) for line in (NESTED / "dev.json").read_text().splitlines()]
    flat, tagged, of_tokens = [], [], []
    for line in lines:
        entities = []
        for entity in sorted(line["entities"], key=lambda each: (each["start"], -each["end"])):
            if not entities or entity["start"] >= entities[-1]["end"]:
                entities.append(entity)
        tags = ["O"] * len(line["text"])
        for start, end, type_ in ((each["start"], each["end"], each["type"]) for each in entities):
            tags[start:end] = [f"B-{type_}" if end - start > 1 else f"S-{type_}", *[f"I-{type_}"] * (end - start - 1)]
        tokens = list(line["text"])
        flat.append({"text": line["text"], "entities": entities})
        tagged.append({"text": tokens, "label": tags})
        of_tokens.append({"text": tokens, "entities": entities})
    reports = []
    for name, content in (("flat", flat), ("tagged", tagged), ("tokens", of_tokens)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, content)))
        report, errors = run(folders["nested"], tmp_path / name, tmp_path / f"{name} report")
        reports.append((report["strict"], report["lenient"], errors))
    assert reports[0] == reports[1] == reports[2]
    text = {"text": "他在北京。", "entities": [{"start": 2, "end": 4, "type": "LOC"}]}
    tags = {"text": [*"他在北京。"], "label": ["O", "O", "B-LOC", "I-LOC", "O"]}
    strict = []
    for line in (text, tags):
        (tmp_path / "one").write_text(json.dumps(line))
        strict.append(run(folders["ner"], tmp_path / "one", tmp_path / "one report", overwrite=True)[0]["strict"])
    assert strict[0] == strict[1]
    (tmp_path / "one").write_text(
        json.dumps(
            lines[0]
            | {
                "text": "北京大学",
                "entities": [{"start": 0, "end": 2, "type": "LOC"}, {"start": 0, "end": 4, "type": "ORG"}],
            }
        )
    )
    with pytest.raises(UserError, match="one:1:.*expected entities that do not overlap.*--head global_pointer"):
        run(folders["ner"], tmp_path / "one", tmp_path / "one report", overwrite=True)


@pytest.mark.slow
def test_taggers_on_entities_that_overlap_are_compared(folders, tmp_path):
    for name in ("one", "two"):
        run(folders["nested"], NESTED / "dev.json", tmp_path / name)
    compare.main([str(tmp_path / "one"), str(tmp_path / "two"), "--output_file", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    assert "f1" in json.dumps(report)


def test_tokens_with_tabs_and_line_breaks_keep_the_columns(folders, tmp_path):
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"text": ["王", "\t", "小\n明", "。"], "label": ["B-LOC", "I-LOC", "I-LOC", "O"]}))
    _, (header, *errors) = run(folders["ner"], data, tmp_path / "report")
    assert [len(row) for row in errors] == [len(header)]
    assert errors[0][:2] == ["1", "LOC 0:3 王 小 明"]
    assert errors[0][3] == "王 小 明。"


@pytest.mark.slow
def test_two_processes_report_what_one_does(folders, tmp_path):
    one, _ = run(folders["matching"], MATCHING / "dev.txt", tmp_path / "one")
    options = {"model_dir": folders["matching"], "input_file": MATCHING / "dev.txt", "output_dir": tmp_path / "two"}
    config = evaluate.EvaluateConfig(**{name: str(value) for name, value in options.items()})
    run_processes(2, evaluate.run, config)
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    assert two["confusions"] == one["confusions"]
    assert two["intervals"] == one["intervals"]
    ours, theirs = (read_evaluation(str(tmp_path / name)).table.columns for name in ("one", "two"))
    assert ours == theirs


def test_what_is_evaluated_is_not_replaced(folders, tmp_path):
    data = tmp_path / "errors.tsv"
    data.write_bytes((REVIEWS / "dev.txt").read_bytes())
    config = evaluate.EvaluateConfig(
        model_dir=str(folders["classifier"]), input_file=str(data), output_dir=str(tmp_path), overwrite=True
    )
    with pytest.raises(UserError, match=r"errors.tsv: expected another file for the output, got one that is read"):
        evaluate.run(config)
    assert data.read_bytes() == (REVIEWS / "dev.txt").read_bytes()


def test_reports_are_not_replaced(folders, tmp_path):
    (tmp_path / "errors.tsv").write_text("mine")
    with pytest.raises(UserError, match="errors.tsv: expected no file of this name"):
        run(folders["classifier"], REVIEWS / "dev.txt", tmp_path)
    run(folders["classifier"], REVIEWS / "dev.txt", tmp_path, overwrite=True)


def test_a_picture_without_matplotlib_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--plot needs matplotlib; install it by: pip install matplotlib"):
        run("folder", "data", tmp_path, plot=True)


def test_a_picture(folders, tmp_path):
    pytest.importorskip("matplotlib")
    run(folders["nli"], NLI / "dev.txt", tmp_path, plot=True)
    for name in ("confusion.png", "reliability.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    run(folders["nli"], NLI / "dev.txt", tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors.tsv", "predictions.jsonl", "report.json"]
