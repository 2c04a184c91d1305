"""The command as a user starts it; and predict, evaluate and encode with what it made, against the model by torch."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch

from bertorch import encode, evaluate, export, load, predict
from bertorch.errors import UserError
from tests.conftest import MATCHING, NER, NESTED, REVIEWS, SENTENCES, STS, TOPICS, run_script
from tests.exports import copied, few_texts, flipped, save, small_task

TEXTS = [line.split("\t")[0] for line in (REVIEWS / "dev.txt").read_text().splitlines()]
FORMATS = ("onnx", "onnx-int8")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    few_texts(monkeypatch)


def run(folder, form, **settings):
    export.run(export.ExportConfig(model_dir=str(folder), format=form, **settings))


def test_a_failed_check_ends_with_exit_code_1_and_the_figures(exported, tmp_path, monkeypatch, log_lines):
    copied(monkeypatch, exported)
    monkeypatch.setattr("bertorch.exporting.export.quantised", lambda full, kind, path: flipped(exported, path))
    texts, output = tmp_path / "texts.txt", tmp_path / "export"
    texts.write_text("\n".join(TEXTS))
    with pytest.raises(SystemExit) as exit_:
        run(exported, "onnx-int8", check_file=str(texts), output_dir=str(output))
    assert exit_.value.code == 1
    assert any("95 % interval" in line and "nothing was put into place" in line for line in log_lines)
    assert not output.exists()


def test_the_files_are_named_in_the_log(exported, tmp_path, monkeypatch, log_lines):
    copied(monkeypatch, exported)
    run(exported, "onnx", output_dir=str(tmp_path / "export"))
    assert log_lines[-1] == f"{tmp_path}/export/onnx/model.onnx"
    assert any("largest difference of an output" in line for line in log_lines)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "safetensors"}, "--format safetensors needs --output_dir"),
        ({"format": "safetensors", "output_dir": "o", "check_file": "c"}, "--check_file is for graphs"),
        ({"format": "onnx", "max_loss": 0.1}, "--max_loss is for --format onnx-int8, got onnx"),
    ],
)
def test_options_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        export.ExportConfig(model_dir="m", **settings)


def test_a_graph_has_the_precision_that_it_was_exported_with(exported):
    with pytest.raises(UserError, match="--precision bf16 is for --backend torch"):
        predict.PredictConfig(model_dir="m", input_file="i", output_file="o", precision="bf16", backend="onnx")
    with pytest.raises(UserError, match="expected neither a device nor a precision with the backend 'onnx'"):
        load(exported, backend="onnx", precision="bf16")
    assert load(exported, backend="onnx", device=torch.device("cpu")).predict(["好"])


def test_a_folder_without_an_export_names_the_command(tmp_path):
    save(small_task("score"), tmp_path / "model")
    with pytest.raises(UserError, match=f"python -m bertorch.export --model_dir {tmp_path}/model --format onnx-int8"):
        load(tmp_path / "model", backend="onnx-int8")


def test_folds_are_exported_one_by_one(tmp_path):
    from bertorch.training.folds_folder import Progress

    save(small_task("classification"), tmp_path / "fold-1")
    progress = vars(Progress(1, "python run_classifier.py", trained=1, is_cleared=True, is_complete=True))
    record = {"id": "a", "options": {}, "files": [], "digests": {}, "folds": progress}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="got that of --folds; export each of them, such as .*fold-1"):
        run(tmp_path, "onnx")


@pytest.mark.slow
def test_the_command_line(exported, tmp_path):
    """Weights of another kind, and a mistake."""
    output = tmp_path / "export"
    command = ("-m", "bertorch.export", "--model_dir", exported, "--format", "safetensors")
    run_script(*command, "--output_dir", output, launcher=("-X", "utf8"))
    assert (output / "model.safetensors").exists()
    done = run_script(*command, "--output_dir", output, launcher=("-X", "utf8"), check=2)
    assert "expected no file of this name, got one" in done.stderr


def predicted(folder, source, target, **settings):
    options = {"model_dir": str(folder), "input_file": str(source), "output_file": str(target)} | settings
    predict.run(predict.PredictConfig(**options))
    return target.read_text().splitlines()


def evaluated(folder, data, target, **settings):
    evaluate.run(
        evaluate.EvaluateConfig(model_dir=str(folder), input_file=str(data), output_dir=str(target), **settings)
    )
    return json.loads((target / "report.json").read_text())


NEXT = [f"{text}\t{other}" for text, other in pairwise(TEXTS[:21])]
# The run of a folder → its dev data, and lines to predict.
BACKENDS = {
    "classifier": (REVIEWS / "dev.txt", TEXTS),
    "several labels": (TOPICS / "dev.txt", TEXTS[:20]),
    "matching": (MATCHING / "dev.txt", NEXT),
    "batchneg": (STS, NEXT),
    "ner with a CRF": (NER / "dev.json", SENTENCES.read_text().splitlines()[:20]),
    "nested": (NESTED / "dev.json", SENTENCES.read_text().splitlines()[:20]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_predict_and_evaluate_with_each_backend(name, graphs, tmp_path):
    folder, (dev, inputs) = graphs(name), BACKENDS[name]
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{line}\n" for line in inputs))
    record = json.loads((folder / "onnx" / "model.onnx.json").read_text())
    assert record["check"]["data"].startswith(dev.name)  # what the run remembers
    lines = {each: predicted(folder, source, tmp_path / each, backend=each) for each in ("torch", *FORMATS)}
    if name in ("ner with a CRF", "nested"):
        assert lines["onnx"] == lines["torch"]
        assert len(lines["onnx-int8"]) == len(inputs)
    else:
        tables = {each: [line.split("\t") for line in rows[1:]] for each, rows in lines.items()}
        numbers = {each: np.array([row[len(row) > 1 :] for row in rows], dtype=float) for each, rows in tables.items()}
        np.testing.assert_allclose(numbers["onnx"], numbers["torch"], atol=1e-5)
        np.testing.assert_allclose(numbers["onnx-int8"], numbers["torch"], atol=0.1)
        if name != "batchneg":
            assert [row[0] for row in tables["onnx"]] == [row[0] for row in tables["torch"]]
    reports = {each: evaluated(folder, dev, tmp_path / f"{each} report", backend=each) for each in ("torch", *FORMATS)}
    main = next(iter(reports["torch"]["measures"]))
    values = {each: report["measures"][main]["value"] for each, report in reports.items()}
    assert [report.get("backend") for report in reports.values()] == [None, *FORMATS]
    assert values["onnx"] == pytest.approx(values["torch"], abs=1e-6)
    assert values["onnx-int8"] == pytest.approx(values["torch"], abs=0.1)


@pytest.mark.slow
def test_encode_with_each_backend(graphs, tmp_path):
    """Prompts, dimensions and the search as before; vectors of another backend are another encoding."""
    folder, source = graphs("cosent"), tmp_path / "in.txt"
    source.write_text("".join(f"{line}\n" for line in TEXTS[:30]))
    vectors = {}
    for backend in ("torch", *FORMATS):
        target = tmp_path / f"{backend}.npy"
        settings = {"model_dir": str(folder), "input_file": str(source), "dimensions": 32, "backend": backend}
        encode.run(encode.EncodeConfig(**settings, output_file=str(target)))
        encode.run(encode.EncodeConfig(**settings, output_file=str(target)))  # is left as it is
        vectors[backend] = np.load(target)
    np.testing.assert_allclose(vectors["onnx"], vectors["torch"], atol=1e-5)
    assert (vectors["onnx-int8"] * vectors["torch"]).sum(axis=1).mean() > 0.99
    other = {"batch_size": 7, "output_file": str(tmp_path / "onnx-int8.npy")}
    with pytest.raises(UserError, match="differs in --batch_size times processes"):
        encode.run(encode.EncodeConfig(**settings | other))
    with pytest.raises(UserError, match="holds vectors of another run, which differs in content of --model_dir, graph"):
        encode.run(encode.EncodeConfig(**settings | {"backend": "onnx"}, output_file=str(tmp_path / "torch.npy")))


@pytest.mark.slow
def test_prompts_go_before_texts_as_with_torch(graphs):
    ours, theirs = (load(graphs("prompts"), backend=backend) for backend in ("onnx", "torch"))
    for prompt in ("query", "passage", "none"):
        np.testing.assert_allclose(
            ours.encode(TEXTS[:9], prompt=prompt), theirs.encode(TEXTS[:9], prompt=prompt), atol=1e-5
        )


@pytest.mark.slow
def test_what_is_fitted_to_a_model_after_its_export_counts(graphs, tmp_path):
    """Thresholds and temperatures are in config.json, not in the graph; nor does fitting with a graph change more."""
    folder = tmp_path / "model"
    shutil.copytree(graphs("matching"), folder)
    before = json.loads((folder / "config.json").read_text())
    evaluated(folder, MATCHING / "dev.txt", tmp_path / "fitted", calibrate=True, backend="onnx")
    after = json.loads((folder / "config.json").read_text())
    assert "temperature" in after["bertorch"]
    assert {name: value for name, value in after["bertorch"].items() if name != "temperature"} == before["bertorch"]
    pairs = [tuple(line.split("\t")[:2]) for line in (MATCHING / "dev.txt").read_text().splitlines()][:20]
    ours, theirs = (load(folder, backend=backend).predict(pairs) for backend in ("onnx", "torch"))
    for one, other in zip(ours, theirs, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.mark.parametrize("fitting", [{"calibrate": True}, {"tune_thresholds": "macro"}])
def test_nothing_is_fitted_to_int8(fitting, tmp_path):
    """What is fitted is in the folder, for every backend."""
    with pytest.raises(UserError, match="fits what every backend then uses, and --backend onnx-int8 gives something"):
        evaluated(tmp_path, MATCHING / "dev.txt", tmp_path / "report", backend="onnx-int8", **fitting)


@pytest.mark.slow
def test_tags_and_scores_of_a_crf(graphs):
    ours, theirs = (load(graphs("ner with a CRF"), backend=backend) for backend in ("onnx", "torch"))
    for one, other in zip(
        *(model.tag(SENTENCES.read_text().splitlines()[:30]) for model in (ours, theirs)), strict=True
    ):
        assert one.tags == other.tags
        assert [each.score for each in one.entities] == pytest.approx([each.score for each in other.entities], abs=1e-4)
