"""`bertorch.evaluate --calibrate` as a user starts it: what it stores, and what uses that."""

import json
import math
import shutil

import numpy as np
import pytest

from bertorch import evaluate, load, predict
from bertorch.data.fingerprint import file_digest
from bertorch.errors import UserError
from bertorch.tasks import metadata
from bertorch.tasks.calibration import fit_temperature
from bertorch.tasks.metadata import KEY
from bertorch.training import model_card
from bertorch.training.model_card import CARD
from bertorch.training.run_folder import LOCK
from bertorch.writer_lock import only_writer
from tests.conftest import MATCHING, NER, REVIEWS, SCORES, STS, TOPICS, run_processes, run_script
from tests.log_lines import command
from tests.wrong_use import snapshot

DATA = {"classifier": REVIEWS / "dev.txt", "matching": MATCHING / "dev.txt"}
FIGURES = {"expected_calibration_error", "negative_log_likelihood"}


def read(data) -> tuple[list, list[str]]:
    """Texts or pairs, and their labels."""
    lines = [line.split("\t") for line in data.read_text().splitlines()]
    return [texts[0] if len(texts) == 1 else tuple(texts) for *texts, _ in lines], [label for *_, label in lines]


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def run(folder, target, data=DATA["classifier"], **settings):
    """The report, the errors by their number, and the predictions."""
    options = {"model_dir": str(folder), "input_file": str(data), "output_dir": str(target), "overwrite": True}
    evaluate.run(evaluate.EvaluateConfig(**(options | settings)))
    header, *errors = [line.split("\t") for line in (target / "errors.tsv").read_text().splitlines()]
    predictions = [json.loads(line) for line in (target / "predictions.jsonl").read_text().splitlines()]
    return (
        json.loads((target / "report.json").read_text()),
        {row[0]: dict(zip(header, row, strict=True)) for row in errors},
        predictions,
    )


@pytest.fixture
def folder(folders, tmp_path):
    """A copy, which may be changed."""
    return shutil.copytree(folders["classifier"], tmp_path / "model")


@pytest.mark.parametrize("name", ["classifier", pytest.param("matching", marks=pytest.mark.slow)])
def test_the_temperature_is_stored_and_used(name, folders, tmp_path, log_lines):
    data, folder = DATA[name], shutil.copytree(folders[name], tmp_path / "model")
    texts, gold = read(data)
    plain, plain_errors, plain_predictions = run(folder, tmp_path / "plain", data)
    config, files = config_of(folder), sorted(path.name for path in folder.iterdir())
    before = load(folder).predict(texts)
    labels = list(before[0].probabilities)
    ids = np.array([labels.index(label) for label in gold])
    logits = np.log([list(each.probabilities.values()) for each in before])  # up to a constant of each row

    report, errors, predictions = run(folder, tmp_path / "fitting", data, calibrate=True)
    # The evaluation itself is from before.
    fitted = report.pop("calibrated")
    assert (report, errors, predictions) == (plain, plain_errors, plain_predictions)
    assert fitted["temperature"] == pytest.approx(fit_temperature(logits, ids, "x"), rel=1e-3)
    assert all(fitted[each].keys() == FIGURES for each in ("before", "after", "cross_fitted"))
    assert fitted["after"]["negative_log_likelihood"] < fitted["before"]["negative_log_likelihood"]
    assert fitted["before"]["negative_log_likelihood"] == pytest.approx(plain["negative_log_likelihood"], rel=1e-6)
    assert any(line.startswith("calibrated, cross_fitted: expected_calibration_error 0.") for line in log_lines)
    temperature = fitted["temperature"]
    assert f"{folder}: the probabilities are calibrated with the temperature {temperature:.4f}, fitted on {data}" in (
        log_lines
    )

    # Nothing else has changed.
    stored = config_of(folder)
    assert stored[KEY].pop("temperature") == {"value": temperature, "data": file_digest(str(data)), "file": str(data)}
    assert stored == config
    assert sorted(path.name for path in folder.iterdir()) == files

    # Python, predict and evaluate use it, wherever the folder is; no label changes.
    moved = shutil.move(folder, tmp_path / "elsewhere")
    after = load(moved).predict(texts)
    powers = np.exp(logits / temperature)
    expected = powers / powers.sum(axis=1, keepdims=True)
    assert np.array([list(each.probabilities.values()) for each in after]) == pytest.approx(expected, abs=1e-4)
    assert [each.label for each in after] == [each.label for each in before]
    assert [each.cosine for each in after] == [each.cosine for each in before]
    shutil.copy(data, tmp_path / "same.txt")
    again, errors, predictions = run(moved, tmp_path / "again", tmp_path / "same.txt")
    assert [row["predicted"] for row in predictions] == [row["predicted"] for row in plain_predictions]
    assert [row["probability"] for row in predictions] == pytest.approx(expected.max(axis=1), abs=1e-4)
    assert errors.keys() == plain_errors.keys()
    for number, row in errors.items():
        of_labels = expected[int(number) - 1]
        assert float(row["probability"]) == pytest.approx(of_labels.max(), abs=1e-4)
        assert float(row["loss"]) == pytest.approx(-math.log(of_labels[labels.index(row["label"])]), abs=1e-3)
    assert {each: again[each] for each in FIGURES} == pytest.approx(fitted["after"], abs=1e-4)
    assert again["without_temperature"] == pytest.approx(fitted["before"], abs=1e-4)
    assert again["temperature"] == {"value": temperature, "fitted_on": str(data), "fitted_on_these_examples": True}
    for same in ("accuracy", "macro_f1", "confusions", "intervals", "measures"):
        assert again[same] == plain[same]
    warning = f"{tmp_path}/same.txt: fitting the temperature on it made its calibration error look too good; do not rep"
    assert any(line.startswith(warning) for line in log_lines)


@pytest.mark.slow
def test_the_report_keeps_its_widths(folders, tmp_path):
    """Of a model trained at several: what is fitted is the temperature of whole embeddings."""
    folder = shutil.copytree(folders["matching"], tmp_path / "model")
    expected, *_ = run(folder, tmp_path / "whole", DATA["matching"], calibrate=True)
    shutil.rmtree(folder)
    shutil.copytree(folders["matching"], folder)
    config = config_of(folder)
    config[KEY]["matryoshka"] = [32, 8]
    (folder / "config.json").write_text(json.dumps(config))
    plain, *_ = run(folder, tmp_path / "plain", DATA["matching"])
    report, *_ = run(folder, tmp_path / "fitting", DATA["matching"], calibrate=True)
    assert list(report["dimensions"]) == ["128", "32", "8"]
    assert report == plain | {"calibrated": expected["calibrated"]}
    assert {name: value for name, value in report.items() if name != "dimensions"} == expected


def test_predictions_are_written_with_it(folder, folders, tmp_path):
    run(folder, tmp_path / "report", calibrate=True)
    texts, _ = read(DATA["classifier"])
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in texts))
    options = {"model_dir": str(folder), "input_file": str(tmp_path / "in.txt"), "output_file": str(tmp_path / "out")}
    predict.run(predict.PredictConfig(**options))
    _, *lines = [line.split("\t") for line in (tmp_path / "out").read_text().splitlines()]
    for line, each in zip(lines, load(folder).predict(texts), strict=True):
        assert line[0] == each.label
        assert [float(value) for value in line[1:]] == pytest.approx(list(each.probabilities.values()), abs=1e-5)
    logits = []
    for model in (str(folder), str(folders["classifier"])):  # a teacher's logits are those before it
        output = str(tmp_path / f"{len(logits)}.npy")
        predict.run(predict.PredictConfig(**options | {"model_dir": model, "output_file": output}, logits=True))
        logits.append(np.load(output))
    np.testing.assert_array_equal(*logits)


@pytest.mark.slow
def test_a_second_fit_starts_from_the_raw_logits(folder, tmp_path):
    first, *_ = run(folder, tmp_path / "first", calibrate=True)
    stored, card = config_of(folder), (folder / CARD).read_text()
    second, *_ = run(folder, tmp_path / "second", calibrate=True)
    assert second["calibrated"] == first["calibrated"]
    assert second["temperature"]["value"] == first["calibrated"]["temperature"]
    assert (config_of(folder), (folder / CARD).read_text()) == (stored, card)
    other, *_ = run(folder, tmp_path / "other", REVIEWS / "train.txt", calibrate=True)
    assert other["calibrated"]["temperature"] != first["calibrated"]["temperature"]
    assert config_of(folder)[KEY]["temperature"]["value"] == other["calibrated"]["temperature"]
    assert f"fitted on `{REVIEWS}/train.txt`." in (folder / CARD).read_text()
    assert (folder / CARD).read_text().count("Note: the probabilities are calibrated") == 1


@pytest.mark.slow
def test_several_processes_calibrate_as_one(folder, tmp_path):
    two_folder = shutil.copytree(folder, tmp_path / "two_model")
    one, *_ = run(folder, tmp_path / "one", calibrate=True)
    options = {"model_dir": str(two_folder), "input_file": str(DATA["classifier"]), "output_dir": str(tmp_path / "two")}
    run_processes(2, evaluate.run, evaluate.EvaluateConfig(**options, calibrate=True))
    two = json.loads((tmp_path / "two" / "report.json").read_text())["calibrated"]
    assert two.keys() == one["calibrated"].keys()
    assert two["temperature"] == pytest.approx(one["calibrated"]["temperature"], rel=1e-5)
    for name in ("before", "after", "cross_fitted"):
        assert two[name] == pytest.approx(one["calibrated"][name], abs=1e-5)
    assert config_of(two_folder)[KEY]["temperature"]["value"] == two["temperature"]


def test_the_card_says_it(folder, tmp_path):
    before = (folder / CARD).read_text()
    report, *_ = run(folder, tmp_path / "report", calibrate=True)
    after = (folder / CARD).read_text()
    note = "Note: the probabilities are calibrated with the temperature {:.4f}, fitted on `{}`.\n\n"
    note = note.format(report["calibrated"]["temperature"], DATA["classifier"])
    comment = "# gives other probabilities: does not know the temperature\n"
    assert note not in before
    assert comment not in before
    expected = before.replace("## Training\n", f"{note}## Training\n").replace(
        "print(pipeline(", f"{comment}print(pipeline("
    )
    trained_in = json.loads(before.partition("load(")[2].partition(")")[0])
    assert after == expected.replace(f'load("{trained_in}")', f'load("{folder}")').replace(
        f'model="{trained_in}"', f'model="{folder}"'
    )


def test_the_card_says_thresholds_too(folders, tmp_path):
    folder = shutil.copytree(folders["several labels"], tmp_path / "model")
    run(folder, tmp_path / "report", TOPICS / "dev.txt", tune_thresholds="micro")
    text = (folder / CARD).read_text()
    assert (
        f"Note: the labels hold over thresholds for the best micro F1, fitted on `{TOPICS}/dev.txt`.\n\n## Tr" in text
    )
    assert "\n# does not know the thresholds of the labels\nprint(pipeline(" in text


@pytest.mark.parametrize("text", [None, "mine", f"{model_card.MARK}\nmine"])
def test_a_card_of_somebody_else_is_left_alone(text, folder, tmp_path, log_lines):
    (folder / CARD).unlink()
    if text is not None:
        (folder / CARD).write_text(text)
    run(folder, tmp_path / "report", calibrate=True)
    assert "temperature" in config_of(folder)[KEY]
    assert (folder / CARD).exists() == (text is not None)
    if text is not None:
        assert (folder / CARD).read_text() == text
        assert f"{folder / CARD}: is not ours, so it is left as it is" in log_lines


@pytest.mark.parametrize("file", ["config.json", CARD])
def test_a_file_is_written_whole_or_not_at_all(file, folder, tmp_path, monkeypatch):
    before = {name: (folder / name).read_bytes() for name in ("config.json", CARD)}

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metadata if file == "config.json" else model_card, "replacing", full)
    with pytest.raises(UserError, match=f"{folder / file}: expected a file that can be written, got: No space left"):
        run(folder, tmp_path / "report", calibrate=True)
    assert (folder / file).read_bytes() == before[file]
    assert ("temperature" in config_of(folder)[KEY]) == (file == CARD)
    assert not list(folder.glob(".*"))


def test_a_run_that_writes_there_is_in_the_way(folder, tmp_path):
    before = snapshot(folder)
    with only_writer(folder / LOCK, "x"), pytest.raises(UserError, match="expected no other command that writes there"):
        run(folder, tmp_path / "report", calibrate=True)
    assert snapshot(folder) == before


def test_examples_without_a_temperature_change_nothing(folder, tmp_path):
    texts, _ = read(DATA["classifier"])
    right = [f"{text}\t{each.label}\n" for text, each in zip(texts, load(folder).predict(texts), strict=True)]
    (tmp_path / "right.txt").write_text("".join(right))
    before = snapshot(folder)
    message = f"--calibrate: {tmp_path}/right.txt: expected examples that the model gets wrong, got {len(texts)} right"
    with pytest.raises(UserError, match=message):
        run(folder, tmp_path / "report", tmp_path / "right.txt", calibrate=True)
    assert snapshot(folder) == before
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "other"),
    [
        ("several labels", TOPICS / "dev.txt", r" \(--tune_thresholds is for it\)"),
        ("score", SCORES / "dev.txt", ""),
        ("simcse", STS, ""),
        ("ner", NER / "dev.json", ""),
    ],
)
def test_what_has_no_temperature_is_refused(name, data, other, folders, tmp_path):
    before = snapshot(folders[name])
    message = rf"--calibrate is for models that give .*, of the task \w+, has no temperature{other}; leave it out"
    with pytest.raises(UserError, match=message):
        run(folders[name], tmp_path / "report", data, calibrate=True)
    assert snapshot(folders[name]) == before


def test_a_folder_of_another_program_is_refused(folder, tmp_path):
    config = config_of(folder)
    del config[KEY]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="--calibrate stores the temperature in .*, which bertorch did not save"):
        run(folder, tmp_path, calibrate=True)


def test_it_is_not_for_the_models_of_the_thresholds():
    options = {"model_dir": "a", "input_file": "b", "output_dir": "c"}
    with pytest.raises(UserError, match="--tune_thresholds and --calibrate are for different models; leave one out"):
        evaluate.EvaluateConfig(**options, calibrate=True, tune_thresholds="macro")


def test_a_malformed_temperature_is_an_error(folder):
    config = config_of(folder)
    config[KEY]["temperature"] = {"value": 0, "data": "digest"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{folder}/config.json: bertorch: temperature: expected a number from 0.01"):
        load(folder)


@pytest.mark.slow
def test_a_new_run_starts_without_it(folder, tmp_path):
    """Into the folder, from the folder, and from its weights."""
    run(folder, tmp_path / "report", calibrate=True)
    settings = {"label_file": REVIEWS / "labels.txt", "max_steps": 1, "keep_checkpoints": 0, "max_seq_length": 16}
    files = (DATA["classifier"], DATA["classifier"])
    starts = {
        "warm": {"init_from_ckpt": folder / "pytorch_model.bin"},
        "base": {"pretrained_model_name_or_path": folder},
    }
    for name, start in starts.items():
        run_script(*command("run_classifier.py", *files, tmp_path / name, **settings, **start))
    run_script(*command("run_classifier.py", *files, folder, **settings), "--overwrite")
    for saved in (tmp_path / "warm", tmp_path / "base", folder):
        assert "temperature" not in config_of(saved)[KEY]
        assert "calibrated" not in (saved / CARD).read_text()
        assert load(saved).task.temperature.value == 1
