"""`--folds` of the three scripts, from the command's options to what the folder gives."""

import copy
import gc
import json
import os
import pickle
import shutil
import signal
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import run_classifier
import run_ner
import run_sentencebert
from bertorch import encode, evaluate, label_issues, load
from bertorch.compare import main as compare
from bertorch.data.out_of_fold import read_out_of_fold
from bertorch.errors import InterruptedRunError, UserError
from bertorch.inference.load import load_trained
from bertorch.tasks.calibration import Temperature
from bertorch.tasks.fitting import FittedFile
from bertorch.tasks.metadata import update_settings
from bertorch.training import folds_folder, run_state
from bertorch.training.folds_folder import fold_folders
from bertorch.training.interruption import Interruption
from bertorch.training.start import started
from bertorch.weights import WEIGHTS, load_weights
from tests.conftest import NER, NLI, RETRIEVAL, REVIEWS, TINY, run_processes
from tests.short_runs import assert_equal
from tests.teachers import class_teacher, random_rows

SCRIPTS = {
    "classifier": (run_classifier, run_classifier.ClassifierConfig, REVIEWS / "train.txt", REVIEWS / "labels.txt"),
    "sentencebert": (run_sentencebert, run_sentencebert.SentenceBertConfig, NLI / "train.txt", NLI / "labels.txt"),
    "ner": (run_ner, run_ner.NERConfig, NER / "train.json", NER / "labels.txt"),
}
OF_SCRIPT = {
    "classifier": {"class_weights": "balanced"},
    "sentencebert": {"is_nli": True, "pooling_mode": "mean", "concat_multiply": True, "matryoshka": "64,8"},
    "ner": {"use_crf": True, "crf_learning_rate": 1e-2},
}
LINES = 21


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """As `cli.main` does: the garbage collector, which is called after each fold, leaves what is imported alone."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def config_of(script: str, folder: Path, **settings: Any) -> Any:
    """Options of a run on the first lines of a sample, which stand beside the folder."""
    _, config_class, data, labels = SCRIPTS[script]
    train = folder.with_suffix(".train")
    if not train.exists():
        lines = data.read_text().splitlines(keepends=True)[:LINES]
        train.write_text("".join([*lines, lines[0]]))  # the first once more
    options = {"train_data_file": train, "label_file": labels, "saved_dir": folder} | OF_SCRIPT[script]
    options |= {"pretrained_model_name_or_path": TINY, "max_seq_length": 24, "batch_size": 8, "max_steps": 2}
    options |= {"learning_rate": 1e-3, "save_interval": 0.0, "save_steps": 1, "folds": 3}
    named = {name: str(value) if isinstance(value, Path) else value for name, value in (options | settings).items()}
    return config_class(**named)


def run(script: str, folder: Path, **settings: Any) -> Any:
    """A run as `cli.main` starts it."""
    config = config_of(script, folder, **settings)
    torch.manual_seed(config.seed)
    with started(config):
        SCRIPTS[script][0].run(config)
    return config


class Trained:
    """The folder of a run with folds of each script, made when it is first asked for."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def __getitem__(self, script: str) -> Path:
        folder = self._base / script
        if not folder.exists():
            run(script, folder)
        return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("folds"))


def inputs_of(script: str, folder: Path) -> list[Any]:
    """The training examples as `predict` and `tag` take them."""
    lines = folder.with_suffix(".train").read_text().splitlines()
    if script == "ner":
        return [json.loads(line)["text"] for line in lines]
    columns = [line.split("\t")[:-1] for line in lines]
    return [tuple(texts) if len(texts) > 1 else texts[0] for texts in columns]


def held_out(fold: Path) -> np.ndarray:
    """The indices of the examples that the model of a fold has not seen."""
    return np.array(json.loads((fold / "dev_examples.json").read_text())["examples"]) - 1


@pytest.mark.parametrize("script", ["classifier", pytest.param("ner", marks=pytest.mark.slow)])
def test_a_fold_is_a_run_on_the_other_folds_bit_for_bit(script, trained, tmp_path):
    lines = trained[script].with_suffix(".train").read_text().splitlines(keepends=True)
    fold = trained[script] / "fold-2"
    part = set(held_out(fold).tolist())
    for name, chosen in (("train", set(range(len(lines))) - part), ("dev", part)):
        (tmp_path / name).write_text("".join(lines[index] for index in sorted(chosen)))
    files = {"train_data_file": tmp_path / "train", "dev_data_file": tmp_path / "dev"}
    run(script, tmp_path / "plain", folds=None, **files)
    assert_equal(load_weights(str(fold)), load_weights(str(tmp_path / "plain")))
    ours, theirs = (
        [{name: value for name, value in json.loads(line).items() if name.startswith(("step", "dev"))} for line in text]
        for text in ((folder / "metrics.jsonl").read_text().splitlines() for folder in (fold, tmp_path / "plain"))
    )
    assert [line for line in ours if len(line) > 2] == [line for line in theirs if len(line) > 2] != []


@pytest.mark.slow
def test_the_rows_of_a_teacher_follow_the_examples_of_a_fold(tmp_path):
    whole = tmp_path / "whole"
    lines = Path(config_of("classifier", whole).train_data_file).read_text().splitlines()
    names = (REVIEWS / "labels.txt").read_text().split()
    rows = random_rows(len(lines), len(names))

    def options(name: str, chosen: list[int]) -> dict[str, Any]:
        (tmp_path / name).write_text("".join(f"{lines[index]}\n" for index in chosen))
        texts = [lines[index].split("\t")[0] for index in chosen]
        teacher = class_teacher(tmp_path / f"{name}.npy", rows[chosen], names, texts)
        return {"train_data_file": tmp_path / name, "teacher": teacher, "teacher_weight": 1.0}

    run("classifier", whole, **options("all", list(range(len(lines)))))
    seen = sorted(set(range(len(lines))) - set(held_out(whole / "fold-2").tolist()))
    run("classifier", tmp_path / "plain", folds=None, **options("seen", seen))
    assert_equal(load_weights(str(whole / "fold-2")), load_weights(str(tmp_path / "plain")))


@pytest.mark.slow
@pytest.mark.parametrize("script", ["classifier", "sentencebert"])
def test_out_of_fold_is_what_each_fold_predicts_of_its_part(script, trained):
    folder = trained[script]
    rows, inputs = read_out_of_fold(str(folder / "out_of_fold.tsv")), inputs_of(script, folder)
    assert rows.numbers.tolist() == list(range(1, len(inputs) + 1))
    texts = list(zip(*rows.texts.values(), strict=True))
    assert texts == [each if isinstance(each, tuple) else (each,) for each in inputs]
    labels = [line.rpartition("\t")[2] for line in folder.with_suffix(".train").read_text().splitlines()]
    assert [rows.label_names[label] for label in rows.labels] == labels
    assert rows.folds[0] == rows.folds[-1]  # the same text
    for number in (1, 2, 3):
        part = held_out(folder / f"fold-{number}")
        np.testing.assert_array_equal(np.flatnonzero(rows.folds == number), part)
        predicted = load(folder / f"fold-{number}").predict([inputs[index] for index in part])
        expected = [list(prediction.probabilities.values()) for prediction in predicted]
        np.testing.assert_allclose(rows.probabilities[part], expected, atol=2e-6)
    report = json.loads((folder / "report.json").read_text())
    right = rows.probabilities.argmax(axis=1) == rows.labels
    assert report["accuracy"] == pytest.approx(right.mean())
    low, high = report["intervals"]["accuracy"]
    assert low <= right.mean() <= high
    wrong = [int(line.split("\t")[0]) for line in (folder / "errors.tsv").read_text().splitlines()[1:]]
    assert sorted(wrong) == (np.flatnonzero(~right) + 1).tolist()


@pytest.mark.slow
def test_out_of_fold_of_a_tagger(trained):
    """Rows are tokens, and under the CRF their probabilities are marginal ones."""
    folder, sentences = trained["ner"], inputs_of("ner", trained["ner"])
    rows = read_out_of_fold(str(folder / "out_of_fold.tsv"))
    assert rows.texts["token"] == [token for sentence in sentences for token in sentence]
    expected_numbers = [index for index, sentence in enumerate(sentences, start=1) for _ in sentence]
    assert rows.numbers.tolist() == expected_numbers
    tags = [json.loads(line)["label"] for line in folder.with_suffix(".train").read_text().splitlines()]
    assert [rows.label_names[label] for label in rows.labels] == [tag for each in tags for tag in each]
    for number in (1, 2, 3):
        task: Any = load_trained(folder / f"fold-{number}")
        part = held_out(folder / f"fold-{number}")
        np.testing.assert_array_equal(np.unique(rows.numbers[rows.folds == number]), part + 1)
        _, examples = task.read_labelled(str(folder.with_suffix(".train")), "stop")
        for index in part[:3].tolist():  # by the gradient of the log partition function
            batch = examples.batch(np.array([index]))
            emissions = task.outputs(batch).detach().requires_grad_()
            likelihood = task.span_model.crf.log_likelihood(emissions, batch.labels, batch.cu_words, batch.max_words)
            likelihood.sum().backward()
            marginals = torch.nn.functional.one_hot(batch.labels, emissions.shape[1]) - emissions.grad
            np.testing.assert_allclose(rows.probabilities[rows.numbers == index + 1], marginals, atol=5e-6)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_results_go_on(script, trained, tmp_path, log_lines):
    """Into `label_issues` and `compare`; and the card says how the folder is used."""
    folder = trained[script]
    label_issues.main([str(folder / "out_of_fold.tsv"), "--output_file", str(tmp_path / "issues.tsv")])
    assert (tmp_path / "issues.tsv").read_text().startswith("number\tlabel\tsuggested\tprobability\t")
    shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("fold-*"))
    compare([str(folder), str(tmp_path / "other")])
    card = (folder / "README.md").read_text()
    assert f'load("{folder}").{"tag" if script == "ner" else "predict"}([' in card
    assert "## Metrics on the examples that a model has not seen\n" in card
    assert "`fold-1`, `fold-2`, `fold-3`" in card


@pytest.mark.slow
@pytest.mark.parametrize("script", ["classifier", "sentencebert"])
def test_the_folder_predicts_the_mean_of_its_models(script, trained):
    folder = trained[script]
    inputs = inputs_of(script, folder)
    members = [load(fold).predict(inputs) for fold in fold_folders(str(folder))]
    model = load(folder)
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        predicted = each.predict(inputs)
        for index, prediction in enumerate(predicted):
            of_members = [list(member[index].probabilities.values()) for member in members]
            np.testing.assert_allclose(list(prediction.probabilities.values()), np.mean(of_members, axis=0), atol=1e-6)
            if script == "sentencebert":
                assert prediction.cosine == pytest.approx(np.mean([m[index].cosine for m in members]), abs=1e-6)
    logits = np.concatenate([rows for _, rows in model.engine.run(model.task.logit_scorer(), inputs)])
    expected = [list(prediction.probabilities.values()) for prediction in predicted]
    np.testing.assert_allclose(np.exp(logits), expected, atol=1e-6)


def test_an_evaluation_leaves_no_dropout_on(trained):
    task = load_trained(trained["classifier"])
    assert not any(module.training for module in task.model.modules())


@pytest.mark.slow
def test_the_results_are_of_the_file_that_the_folds_were_made_of(trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(folds_folder, "content_digest", lambda path: f"another content of {path}")
        with pytest.raises(UserError, match=r"classifier\.train: expected the training file as it was when the folds"):
            run("classifier", tmp_path / "classifier")
    run("classifier", tmp_path / "classifier")
    name = "out_of_fold.tsv"
    assert (tmp_path / "classifier" / name).read_text() == (trained["classifier"] / name).read_text()


def test_a_temperature_fitted_meanwhile_is_not_of_the_run(trained, tmp_path):
    folder = copied(trained, tmp_path)
    for fold in fold_folders(str(folder)):
        settings = json.loads((Path(fold) / "config.json").read_text())["bertorch"]
        update_settings(fold, settings | Temperature(3.0, FittedFile("a digest", "dev.txt")).settings())
        assert load_trained(fold).temperature.value == 3.0
    before = (folder / "out_of_fold.tsv").read_text()
    report = json.loads((folder / "report.json").read_text())
    record = json.loads((folder / "run.json").read_text())
    record["folds"]["is_complete"] = False
    (folder / "run.json").write_text(json.dumps(record))
    run("classifier", folder)
    assert (folder / "out_of_fold.tsv").read_text() == before
    for name in ("accuracy", "expected_calibration_error", "negative_log_likelihood"):
        assert json.loads((folder / "report.json").read_text())[name] == report[name]


def test_the_folder_tags_by_the_mean_of_emissions_and_scores(trained):
    folder = trained["ner"]
    members: list[Any] = [load_trained(fold) for fold in fold_folders(str(folder))]
    expected: Any = load_trained(folder / "fold-1")
    with torch.no_grad():
        for name, parameter in expected.span_model.crf.named_parameters():
            scores = [dict(member.span_model.crf.named_parameters())[name] for member in members]
            parameter.copy_(sum(scores) / 3)
    ensemble: Any = load_trained(folder)
    _, examples = ensemble.read_labelled(str(folder.with_suffix(".train")), "stop")
    batch = examples.batch(np.arange(len(examples)))
    with torch.no_grad():
        emissions = sum(member.outputs(batch) for member in members) / 3
        torch.testing.assert_close(ensemble.outputs(batch), emissions)
        ours = ensemble.span_model.decode(ensemble.outputs(batch), batch, with_scores=True)
        theirs = expected.span_model.decode(emissions, batch, with_scores=True)
    assert torch.equal(ours.tags, theirs.tags)
    torch.testing.assert_close(ours.spans.scores, theirs.spans.scores)
    tagged = load(folder).tag(inputs_of("ner", folder))
    assert [tag for each in tagged for tag in each.tags] == [ensemble.label_names[tag] for tag in theirs.tags]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_folder_is_evaluated_as_it_predicts(script, trained, tmp_path):
    folder = trained[script]
    data = folder.with_suffix(".train")
    evaluate.run(
        evaluate.EvaluateConfig(model_dir=str(folder), input_file=str(data), output_dir=str(tmp_path / "report"))
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    if script == "ner":
        assert report["strict"]["micro average"]["support"] > 0
        return
    labels = [line.rpartition("\t")[2] for line in data.read_text().splitlines()]
    predicted = [each.label for each in load(folder).predict(inputs_of(script, folder))]
    assert report["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(labels, predicted, strict=True)]))


def test_embeddings_of_several_models_cannot_be_compared(trained, tmp_path):
    folder = trained["sentencebert"]
    assert load(folder).size == 0
    (tmp_path / "in.txt").write_text("好\n")
    options = {"model_dir": str(folder), "input_file": str(tmp_path / "in.txt"), "output_file": str(tmp_path / "o.npy")}
    with pytest.raises(UserError, match="3 of --folds, whose embeddings cannot be compared with each other; .*fold-1"):
        encode.run(encode.EncodeConfig(**options))
    encode.run(encode.EncodeConfig(**options | {"model_dir": str(folder / "fold-1")}))
    options = {"input_file": str(RETRIEVAL), "output_dir": str(tmp_path / "report")}
    with pytest.raises(UserError, match="3 of --folds, whose embeddings cannot be compared with each other; .*fold-1"):
        evaluate.run(evaluate.EvaluateConfig(model_dir=str(folder), **options))
    evaluate.run(evaluate.EvaluateConfig(model_dir=str(folder / "fold-1"), **options))


def stop_at(monkeypatch, number: int) -> None:
    """Stop after the `number`th step of all folds, as a signal would."""
    steps = count(1)
    monkeypatch.setattr(Interruption, "requested", lambda *_: next(steps) == number)


@pytest.mark.slow
def test_a_stop_while_a_fold_is_evaluated_for_the_last_time_comes_before_the_next(tmp_path, monkeypatch):
    folder, evaluate_fold, evaluations = tmp_path / "classifier", run_state.evaluate, count(1)

    def interrupted(*arguments):
        if next(evaluations) == 2:  # of the first fold, after its two steps
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate_fold(*arguments)

    monkeypatch.setattr(run_state, "evaluate", interrupted)
    with pytest.raises(InterruptedRunError, match="stopped after fold 1 of 3") as stopped:
        run("classifier", folder, keep_checkpoints=0)
    assert stopped.value.goes_on
    assert (folder / "fold-1" / WEIGHTS).exists()
    assert not (folder / "fold-2").exists()


@pytest.mark.slow
def test_without_checkpoints_a_stopped_fold_starts_anew(tmp_path, monkeypatch):
    stop_at(monkeypatch, 1)
    with pytest.raises(InterruptedRunError, match=r"stopped after step 1, in fold 1 of 3") as stopped:
        run("classifier", tmp_path / "classifier", keep_checkpoints=0)
    assert stopped.value.goes_on


@pytest.mark.parametrize("name", ["config.json", "run.json", "checkpoint-5/trainer_state.json"])
def test_what_others_left_in_a_later_fold_is_noticed_before_the_first(name, tmp_path, log_lines):
    file = tmp_path / "classifier" / "fold-3" / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(UserError, match="expected no results in fold-3, got those of another run or program"):
        run("classifier", tmp_path / "classifier")
    assert file.exists()
    assert not any("fold 1 of 3" in line for line in log_lines)


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_its_fold(trained, tmp_path, monkeypatch, log_lines):
    folder = tmp_path / "classifier"
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        with pytest.raises(InterruptedRunError) as stopped:
            run("classifier", folder)
    told = f"stopped after step 1, with a checkpoint in {folder / 'fold-2'}, in fold 2 of 3"
    assert (str(stopped.value), stopped.value.goes_on) == (told, True)
    before = (folder / "fold-1" / WEIGHTS).stat().st_mtime_ns
    with pytest.raises(UserError, match=r"expected a complete run with --folds 3, got one of which 1 are trained; the"):
        load(folder)
    run("classifier", folder, resume=True)
    assert (folder / "fold-1" / WEIGHTS).stat().st_mtime_ns == before
    assert f"{folder}: goes on, trained are 1 of 3 folds" in log_lines
    assert f"{folder / 'fold-2'}: goes on after step 1; --overwrite would start from the beginning" in log_lines
    for fold in ("fold-1", "fold-2", "fold-3"):
        assert_equal(load_weights(str(folder / fold)), load_weights(str(trained["classifier"] / fold)))
    for name in ("out_of_fold.tsv", "errors.tsv", "predictions.jsonl"):
        assert (folder / name).read_bytes() == (trained["classifier"] / name).read_bytes()
    log_lines.clear()
    run("classifier", folder, resume=True)
    assert f"{folder}: the run is complete, with 3 of 3 folds" in log_lines
    assert not any("global step" in line for line in log_lines)


def copied(trained: Trained, base: Path) -> Path:
    folder = base / "classifier"
    shutil.copytree(trained["classifier"], folder)
    shutil.copy(trained["classifier"].with_suffix(".train"), folder.with_suffix(".train"))
    return folder


@pytest.mark.slow
def test_other_results_are_not_taken_for_its_own(trained, tmp_path):
    folder = copied(trained, tmp_path)
    with pytest.raises(UserError, match=r"--folds: 3 there, 2 now"):
        run("classifier", folder, folds=2)
    with pytest.raises(UserError, match=r"--folds: 3 there, None now"):
        run("classifier", folder, folds=None)
    with pytest.raises(UserError, match=r"--folds: 3 there, None now"):
        run("classifier", folder / "fold-1", folds=None, train_data_file=folder.with_suffix(".train"))
    run("classifier", folder, folds=2, overwrite=True, max_steps=1)
    assert not (folder / "fold-3").exists()
    assert fold_folders(str(folder)) == [str(folder / "fold-1"), str(folder / "fold-2")]
    run("classifier", folder, folds=None, overwrite=True, max_steps=1)  # an ordinary run again
    assert fold_folders(str(folder)) == []
    assert not (folder / "out_of_fold.tsv").exists()
    load(folder)
    with pytest.raises(UserError, match=r"--folds: None there, 2 now"):
        run("classifier", folder, folds=2)
    run("classifier", folder, folds=2, overwrite=True, max_steps=1)
    assert not (folder / WEIGHTS).exists()
    assert len(fold_folders(str(folder))) == 2


def test_files_of_others_are_left_alone(tmp_path):
    folder = tmp_path / "classifier"
    folder.mkdir()
    (folder / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"report.json: expected no file of this name, got one"):
        run("classifier", folder)
    (folder / "report.json").unlink()
    run("classifier", folder / "fold-1", folds=None, train_data_file=config_of("classifier", folder).train_data_file)
    with pytest.raises(UserError, match=r"expected no results in fold-1, got those of another run or program"):
        run("classifier", folder)


def test_what_the_folds_start_from_is_not_cleared(tmp_path):
    folder = tmp_path / "classifier"
    shutil.copytree(TINY, folder)
    with pytest.raises(UserError, match="expected a model outside of --saved_dir"):
        run("classifier", folder, pretrained_model_name_or_path=folder, overwrite=True)
    assert (folder / "model.safetensors").exists()


def test_labels_that_cannot_be_everywhere_are_named(tmp_path, log_lines, monkeypatch):
    folder = tmp_path / "classifier"
    folder.with_suffix(".train").write_text("".join(f"text {i}\tpositive\n" for i in range(8)) + "one\tnegative\n")
    with pytest.raises(UserError, match="--class_weights balanced: expected training examples of each label"):
        run("classifier", folder)
    assert not any("fold 1 of 3" in line for line in log_lines)  # before anything is trained
    stop_at(monkeypatch, 1)
    with pytest.raises(InterruptedRunError):
        run("classifier", folder, class_weights="none")
    assert "--folds 3: labels with fewer examples than folds: negative" in "".join(log_lines)


def without_dropout(folder: Path) -> Path:
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_two_processes_are_one(script, tmp_path):
    settings = {"pretrained_model_name_or_path": without_dropout(tmp_path / "model"), "learning_rate": 1e-4}
    for name in ("one", "two"):
        config_of(script, tmp_path / name)
    run(script, tmp_path / "one", **settings)
    run_processes(2, run_script_of_two, script, tmp_path / "two", settings | {"batch_size": 4})
    one, two = (read_out_of_fold(str(tmp_path / name / "out_of_fold.tsv")) for name in ("one", "two"))
    np.testing.assert_array_equal(one.folds, two.folds)
    np.testing.assert_allclose(two.probabilities, one.probabilities, atol=2e-5)
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    assert reports[0]["measures"].keys() == reports[1]["measures"].keys()


def run_script_of_two(script: str, folder: Path, settings: dict[str, Any]) -> None:
    run(script, folder, **settings)


def test_a_record_of_another_program_is_not_asked(folders, tmp_path):
    shutil.copytree(folders["classifier"], tmp_path / "copy")
    (tmp_path / "copy" / "run.json").write_text("[]")
    assert fold_folders(str(tmp_path / "copy")) == []
    load(tmp_path / "copy")
