"""Texts with several labels through the script and the commands, as a user starts them."""

import json
import re
import shutil

import numpy as np
import pytest
from sklearn.metrics import f1_score

from bertorch import evaluate, load, predict
from bertorch.data.predictions import read_evaluation
from bertorch.errors import UserError
from bertorch.files import refuse_existing
from bertorch.tasks import metadata
from bertorch.tasks.metadata import KEY
from bertorch.tasks.thresholds import best_thresholds
from bertorch.training.run_folder import LOCK
from bertorch.writer_lock import only_writer
from tests.conftest import REVIEWS, TOPICS, run_processes, run_script
from tests.log_lines import LOGURU, TRAINING_LINE, assert_refused, command, matches
from tests.wrong_use import snapshot

EVAL_LINE = re.compile(LOGURU + r"eval loss: \d+\.\d{5}, micro F1: ([01]\.\d{5}), macro F1: [01]\.\d{5}")
LINES = [line.split("\t") for line in (TOPICS / "dev.txt").read_text().splitlines()]
TEXTS, GOLD = [text for text, _ in LINES], [labels for _, labels in LINES]
LABELS = (TOPICS / "labels.txt").read_text().split()


@pytest.fixture
def folder(folders, tmp_path):
    """A copy, which may be changed."""
    return shutil.copytree(folders["several labels"], tmp_path / "model")


def run(folder, target, data=TOPICS / "dev.txt", **settings):
    options = {"model_dir": str(folder), "input_file": str(data), "output_dir": str(target), "overwrite": True}
    evaluate.run(evaluate.EvaluateConfig(**(options | settings)))
    errors = [line.split("\t") for line in (target / "errors.tsv").read_text().splitlines()]
    return json.loads((target / "report.json").read_text()), errors


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def sets(joined: list[str]) -> np.ndarray:
    return np.array([[name in each.split(",") for name in LABELS] for each in joined])


def test_the_sample_is_learned(folders):
    """All labels for each text would give 0.5, none 0."""
    _, log = folders.run("several labels")
    assert float(matches(EVAL_LINE, log)[-1].group(1)) > 0.7
    assert len(matches(TRAINING_LINE, log)) == 2
    assert "accuracy" not in log


def test_a_report(folders, tmp_path, log_lines):
    model, log = folders.run("several labels")
    report, (header, *errors) = run(model, tmp_path)
    predicted = [",".join(each.labels) for each in load(model).predict(TEXTS)]
    assert report["micro_f1"] == pytest.approx(f1_score(sets(GOLD), sets(predicted), average="micro"))
    assert report["macro_f1"] == pytest.approx(f1_score(sets(GOLD), sets(predicted), average="macro"))
    assert report["exact_match"] == pytest.approx(np.mean([a == b for a, b in zip(GOLD, predicted, strict=True)]))
    assert f"{report['micro_f1']:.5f}" == matches(EVAL_LINE, log)[-1].group(1)
    table = read_evaluation(str(tmp_path)).table
    for name, joined in (("gold", GOLD), ("predicted", predicted)):
        assert table.columns[name] == [sorted(each.split(",")) if each else [] for each in joined]
    assert header == ["number", "labels", "predicted", "loss", "a"]
    losses = [float(row[3]) for row in errors]
    assert losses == sorted(losses, reverse=True)
    told = {int(row[0]): (row[1], row[2], row[4]) for row in errors}
    assert told == {
        number: (gold, ours, text)
        for number, (gold, ours, text) in enumerate(zip(GOLD, predicted, TEXTS, strict=True), start=1)
        if gold != ours
    }
    assert any(re.match(r"labels, 价格: precision .*, support \d+, threshold 0\.00000", line) for line in log_lines)


def test_predictions_have_the_labels_then_a_probability_each(folders, tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    options = {"model_dir": str(folders["several labels"]), "input_file": str(tmp_path / "in.txt")}
    predict.run(predict.PredictConfig(**options, output_file=str(tmp_path / "out.tsv")))
    header, *lines = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert header == ["labels", *LABELS]
    for line, each in zip(lines, load(folders["several labels"]).predict(TEXTS), strict=True):
        assert line[0] == ",".join(each.labels)
        assert [float(value) for value in line[1:]] == pytest.approx(list(each.probabilities.values()), abs=1e-5)
    assert "" in {line[0] for line in lines}
    # What predict writes, evaluate reads.
    answers = [f"{text}\t{line[0]}\n" for text, line in zip(TEXTS, lines, strict=True)]
    (tmp_path / "own.txt").write_text("".join(answers))
    report, errors = run(folders["several labels"], tmp_path / "report", tmp_path / "own.txt")
    assert report["exact_match"] == 1
    assert len(errors) == 1


@pytest.mark.slow
@pytest.mark.parametrize("average", ["macro", "micro"])
def test_tuned_thresholds_are_stored_and_used(average, folder, tmp_path, log_lines):
    untuned, _ = run(folder, tmp_path / "untuned")
    before, names = config_of(folder), sorted(path.name for path in folder.iterdir())
    plain = load(folder).predict(TEXTS)
    logits = np.array([[np.log(p / (1 - p)) for p in each.probabilities.values()] for each in plain])
    report, _ = run(folder, tmp_path / "tuning", tune_thresholds=average)
    after = config_of(folder)
    stored = after[KEY].pop("thresholds")
    assert after == before  # and nothing else has changed
    assert sorted(path.name for path in folder.iterdir()) == names
    expected = best_thresholds(logits, sets(GOLD), average)
    assert stored["values"] == pytest.approx(expected.tolist(), abs=1e-3)
    assert stored["average"] == average
    # The tuned figure itself is not in the report: what is there is from before, and cross-fitted.
    assert {name: value for name, value in report.items() if name != "tuned"} == untuned
    assert report["tuned"]["for"] == average
    assert report["tuned"]["cross_fitted"]["labels"].keys() == set(LABELS)
    assert any(line.startswith("tuned, cross_fitted, labels, 价格: ") for line in log_lines)

    tuned = load(folder).predict(TEXTS)
    assert [each.labels for each in tuned] == [
        tuple(name for name, score, over in zip(LABELS, row, stored["values"], strict=True) if score > over)
        for row in logits
    ]
    shutil.copy(TOPICS / "dev.txt", tmp_path / "same.txt")
    again, _ = run(folder, tmp_path / "again", tmp_path / "same.txt")
    assert again["thresholds"] == {"tuned_for": average, "tuned_on_these_examples": True}
    assert again[f"{average}_f1"] >= untuned[f"{average}_f1"]
    assert again["without_thresholds"]["micro_f1"] == untuned["micro_f1"]
    warning = f"{tmp_path}/same.txt: fitting the thresholds on it made its F1 look too good; do not report it: --tune_t"
    assert any(line.startswith(warning) for line in log_lines)
    other, _ = run(folder, tmp_path / "other", TOPICS / "train.txt")
    assert other["thresholds"] == {"tuned_for": average, "tuned_on_these_examples": False}


def test_only_tuning_changes_the_folder(folder, tmp_path):
    before = snapshot(folder)
    run(folder, tmp_path / "report")
    (tmp_path / "in.txt").write_text("甲\n")
    options = {"model_dir": str(folder), "input_file": str(tmp_path / "in.txt"), "output_file": str(tmp_path / "out")}
    predict.run(predict.PredictConfig(**options))
    assert snapshot(folder) == before


@pytest.mark.slow
def test_several_processes_tune_as_one(folder, tmp_path):
    one, _ = run(folder, tmp_path / "one", tune_thresholds="micro")
    expected = config_of(folder)
    config = config_of(folder)
    del config[KEY]["thresholds"]
    (folder / "config.json").write_text(json.dumps(config))
    options = {"model_dir": str(folder), "input_file": str(TOPICS / "dev.txt"), "output_dir": str(tmp_path / "two")}
    run_processes(2, evaluate.run, evaluate.EvaluateConfig(**options, tune_thresholds="micro"))
    found = config_of(folder)
    ours, theirs = (each[KEY].pop("thresholds") for each in (found, expected))
    assert ours.pop("values") == pytest.approx(theirs.pop("values"), abs=1e-5)
    assert (ours, found) == (theirs, expected)
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    assert two["tuned"]["cross_fitted"]["micro_f1"] == one["tuned"]["cross_fitted"]["micro_f1"]


def test_a_run_that_writes_there_is_in_the_way(folder, tmp_path):
    before = (folder / "config.json").read_bytes()
    with (
        only_writer(folder / LOCK, "x"),
        pytest.raises(UserError, match=f"--model_dir {folder}: expected no other com"),
    ):
        run(folder, tmp_path / "report", tune_thresholds="macro")
    assert not (tmp_path / "report").exists()
    checkpoint = folder / "checkpoint-5"
    shutil.copytree(folder, checkpoint)
    (checkpoint / "training_state.json").write_text("{}")
    with only_writer(folder / LOCK, "x"), pytest.raises(UserError, match="expected no other command"):
        run(checkpoint, tmp_path / "report", tune_thresholds="macro")
    with only_writer(folder / LOCK, "x"):
        run(folder, tmp_path / "report")  # only reads
    assert (folder / "config.json").read_bytes() == before


def test_a_config_is_written_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    before = (folder / "config.json").read_bytes()

    def full(config, indent):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metadata, "to_json", full)
    with pytest.raises(UserError, match=r"config.json: expected a file that can be written, got: No space left"):
        run(folder, tmp_path / "report", tune_thresholds="macro")
    assert (folder / "config.json").read_bytes() == before
    assert not list(folder.glob(".*"))


def test_what_has_no_thresholds_is_refused(folders, folder, tmp_path):
    before = snapshot(folders["classifier"])
    with pytest.raises(
        UserError, match="--tune_thresholds is for models that give a text several labels, and this one"
    ):
        run(folders["classifier"], tmp_path, REVIEWS / "dev.txt", tune_thresholds="macro")
    assert snapshot(folders["classifier"]) == before
    config = config_of(folder)
    del config[KEY]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="--tune_thresholds stores the thresholds in .*, which bertorch did not save"):
        run(folder, tmp_path, tune_thresholds="macro")
    with pytest.raises(UserError, match="nowhere: expected the folder that a run saved, got no folder"):
        run(tmp_path / "nowhere", tmp_path, tune_thresholds="macro")
    refuse_existing([str(tmp_path / "report.json"), str(tmp_path / "nowhere")], overwrite=False)


def test_a_confusion_matrix_is_refused(folders, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="--plot draws the confusion matrix of classes, and this model has none"):
        run(folders["several labels"], tmp_path, plot=True)


def test_pairs_and_another_separator_through_script_and_commands(tmp_path):
    """A mistake in a line ends the script; then it trains, and the folder knows the separator."""
    labels = ["价格", "快,准"]
    lines = [f"{text}\t乙\t{'价格' if '价' in text else ''}" for text in TEXTS]
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    (tmp_path / "train.txt").write_text("\n".join([*lines, "甲\t乙\t快,准|价格"]))
    settings = {"label_file": tmp_path / "labels.txt", "problem_type": "multi_label", "is_text_pair": True}
    settings |= {"max_steps": 1, "keep_checkpoints": 0}
    files = (tmp_path / "train.txt", tmp_path / "train.txt", tmp_path / "saved")
    assert_refused("labels.txt:2: expected a label without ','", *command("run_classifier.py", *files, **settings))
    done = run_script(*command("run_classifier.py", *files, **settings, label_separator="|"))
    assert len(matches(EVAL_LINE, done.stderr)) == 1
    assert config_of(tmp_path / "saved")[KEY]["label_separator"] == "|"
    report, _ = run(tmp_path / "saved", tmp_path / "report", tmp_path / "train.txt")
    assert report["labels"]["快,准"]["support"] == 1
    task = load(tmp_path / "saved").task
    assert task.prediction_line(None, np.array([1.0, 2.0]), tags=False) == "价格|快,准\t0.731059\t0.880797"
