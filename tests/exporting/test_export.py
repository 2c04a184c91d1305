"""Whole exports of folders: what is there, what is put into place, what is refused, and what uses it."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertorch import load
from bertorch.encoder.graph_sources import FITTED, made_of
from bertorch.encoder.onnx_files import INT8, ONNX, record_path
from bertorch.errors import UserError
from bertorch.exporting import export
from bertorch.exporting.export import FailedCheckError, export_graphs, export_safetensors
from bertorch.tasks.fitting import FITTINGS
from bertorch.training.hub_metadata import HubOptions
from bertorch.training.model_card import CARD, MARK
from bertorch.training.run_folder import LOCK, RECORD
from bertorch.writer_lock import only_writer
from tests.conftest import REVIEWS
from tests.exports import copied, flipped, save, small_task

TEXTS = [line.split("\t")[0] for line in (REVIEWS / "dev.txt").read_text().splitlines()][:20]


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    monkeypatch.setattr("bertorch.exporting.check_data.TEXTS", 40)
    monkeypatch.setattr("bertorch.exporting.check_data._LONGEST", 40)


def names(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_export_in_the_folder_of_the_model(exported):
    assert names(exported) == {
        "pytorch_model.bin", "config.json", "tokenizer.json", "tokenizer_config.json", CARD,
        "onnx/model.onnx", "onnx/model.onnx.json",
    }  # fmt: skip
    predictions, expected = (load(exported, backend=backend).predict(TEXTS) for backend in (ONNX, "torch"))
    for ours, theirs in zip(predictions, expected, strict=True):
        assert ours.label == theirs.label
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)
    card = (exported / CARD).read_text()
    assert MARK in card
    assert "| `onnx/model.onnx` |" in card
    assert "largest difference of an output" in card


def test_an_export_that_is_there_is_not_replaced_without_a_word(exported):
    with pytest.raises(UserError, match="model.onnx: expected no file of this name, got one; .* --overwrite"):
        export_graphs(str(exported), ONNX, str(exported))


def test_a_run_that_goes_on_in_the_folder(exported):
    with (
        only_writer(exported / LOCK, "--saved_dir"),
        pytest.raises(UserError, match="--model_dir .*: expected no other command that writes there"),
    ):
        export_graphs(str(exported), INT8, str(exported))


def test_weights_that_change_make_the_export_stale(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    load(folder, backend=ONNX)
    save(small_task("classification", seed=1), folder)
    with pytest.raises(
        UserError,
        match="expected .* to be of the model in .*, got a graph of another .* differs in weights; export again",
    ):
        load(folder, backend=ONNX)


def test_an_export_elsewhere_says_that_its_model_has_changed(exported, tmp_path, monkeypatch, log_lines):
    copied(monkeypatch, exported)
    source, output = tmp_path / "source", tmp_path / "export"
    shutil.copytree(exported, source)
    export_graphs(str(source), ONNX, str(output))
    load(output, backend=ONNX)
    assert not any("another model now" in line for line in log_lines)
    save(small_task("classification", seed=1), source)
    load(output, backend=ONNX)
    assert any("source has another model now than the one that was exported" in line for line in log_lines)


def test_what_a_failed_check_leaves(exported, tmp_path, monkeypatch):
    """Of sabotaged weights: nothing takes the place of what is there, which can still be used."""
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    before = {name: (folder / name).read_bytes() for name in names(folder)}

    def sabotaged(model, padded, path):
        other = copy.deepcopy(padded)
        with torch.no_grad():
            other.model.classifier.bias[0] += 0.01
        shutil.copyfile(exported / "onnx" / "model.onnx", path)
        _shift_bias(path)

    monkeypatch.setattr(export, "write_graph", sabotaged)
    with pytest.raises(FailedCheckError, match=r"model.onnx: largest difference .* 0\.01.*nothing was put into place"):
        export_graphs(str(folder), ONNX, str(folder), overwrite=True)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    with pytest.raises(FailedCheckError):
        export_graphs(str(folder), ONNX, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def _shift_bias(path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    (bias,) = [each for each in model.graph.initializer if each.name.endswith("classifier.bias")]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
    onnx.save(model, path)


def test_a_folder_of_its_own_has_all_that_is_needed(exported, tmp_path, monkeypatch):
    copied(monkeypatch, exported)
    output = tmp_path / "export"
    export_graphs(str(exported), ONNX, str(output))
    assert names(output) == names(exported) - {"pytorch_model.bin"}
    assert (output / "config.json").read_bytes() == (exported / "config.json").read_bytes()
    record = json.loads(record_path(output / "onnx" / "model.onnx").read_text())
    assert (output / record["source"]).resolve() == exported.resolve()
    assert record["made_of"].keys() == {"config.json", "weights"}
    assert str(tmp_path) not in json.dumps(record)  # it may be published
    assert record["check"]["loss"] <= 1e-4
    assert load(output, backend=ONNX).predict(TEXTS[:1])[0].label in ("negative", "positive")
    with pytest.raises(UserError, match="expected model.safetensors or pytorch_model.bin in this folder, got neither"):
        load(output)


def test_int8_beside_it(exported, tmp_path, monkeypatch):
    copied(monkeypatch, exported)
    output = tmp_path / "export"
    export_graphs(str(exported), ONNX, str(output))
    checks = export_graphs(str(exported), INT8, str(output), max_loss=0.5)  # random weights: labels may differ
    assert "model_qint8_avx2.onnx" in checks
    assert names(output) >= {"onnx/model.onnx", *(f"onnx/{name}" for name in checks)}
    assert load(output, backend=INT8).predict(TEXTS[:1])[0].label in ("negative", "positive")
    card = (output / CARD).read_text()
    assert card.count("| `onnx/") == 1 + len(checks)
    assert card.count("## Export") == 1


def test_the_card_is_that_of_the_model_as_it_is_now(exported, tmp_path, monkeypatch):
    """Not the one of an earlier export, which may tell of another run."""
    copied(monkeypatch, exported)
    source, output = tmp_path / "source", tmp_path / "export"
    shutil.copytree(exported, source)
    export_graphs(str(source), ONNX, str(output))
    card = source / CARD
    card.write_text(card.read_text().replace("\n## Export", "\nTrained again.\n\n## Export"))
    export_graphs(str(source), ONNX, str(output), overwrite=True)
    assert "Trained again." in (output / CARD).read_text()
    assert (output / CARD).read_text().count("## Export") == 1


def test_int8_that_loses_too_much(exported, tmp_path, monkeypatch):
    copied(monkeypatch, exported)
    monkeypatch.setattr(export, "quantised", lambda full, kind, path: flipped(exported, path))
    with pytest.raises(FailedCheckError, match="share of equal labels"):
        export_graphs(str(exported), INT8, str(tmp_path / "export"))
    assert not (tmp_path / "export").exists()


def test_graphs_of_other_weights_do_not_stay_beside_new_ones(exported, tmp_path, monkeypatch, log_lines):
    copied(monkeypatch, exported)
    output = tmp_path / "export"
    export_graphs(str(exported), ONNX, str(output))
    record = record_path(output / "onnx" / "model.onnx")
    record.write_text(record.read_text().replace('"made_of": {', '"made_of": {"other": "x",'))
    with pytest.raises(UserError, match="expected a graph of the model that is exported, got one of another"):
        export_graphs(str(exported), INT8, str(output), max_loss=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(export, "quantised", lambda full, kind, path: flipped(exported, path))
        with pytest.raises(FailedCheckError):
            export_graphs(str(exported), INT8, str(output), overwrite=True)
    assert {"onnx/model.onnx", "onnx/model.onnx.json"} <= names(output)
    export_graphs(str(exported), INT8, str(output), max_loss=0.5, overwrite=True)
    assert not {"onnx/model.onnx", "onnx/model.onnx.json"} & names(output)
    assert any("is of another model, and was removed" in line for line in log_lines)


def test_a_file_of_another_model_is_not_replaced_without_a_word(exported, tmp_path, monkeypatch):
    copied(monkeypatch, exported)
    output = tmp_path / "export"
    output.mkdir()
    (output / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json: expected no file of another model, got one that is not as in"):
        export_graphs(str(exported), ONNX, str(output))
    (output / CARD).write_text("mine")
    export_graphs(str(exported), ONNX, str(output), overwrite=True)
    assert (output / CARD).read_text() == "mine"
    assert load(output, backend=ONNX).labels == ["negative", "positive"]


@pytest.mark.slow
@pytest.mark.parametrize("form", [ONNX, "safetensors"])
def test_nothing_of_another_model_stays_beside_an_export(exported, tmp_path, monkeypatch, form):
    """Else sentence-transformers would take its modules, and transformers its weights."""
    copied(monkeypatch, exported)

    def export_it(output, **options):
        if form == ONNX:
            export_graphs(str(exported), ONNX, str(output), **options)
        else:
            export_safetensors(str(exported), str(output), **options)

    output = tmp_path / "export"
    export_safetensors(str(save(small_task("pooler and dense"), tmp_path / "other")), str(output))
    with pytest.raises(UserError, match="expected no file of (another model|this name), got one"):
        export_it(output)
    export_it(output, overwrite=True)
    assert not {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"} & names(output)
    assert ("model.safetensors" in names(output)) == (form != ONNX)
    assert load(output, backend=ONNX if form == ONNX else "torch").labels == ["negative", "positive"]


def test_the_folder_of_another_run_is_left_alone(exported, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / RECORD).write_text("{}")
    for call in (lambda **options: export_graphs(str(exported), ONNX, str(output), **options),
                 lambda **options: export_safetensors(str(exported), str(output), **options)):  # fmt: skip
        with pytest.raises(UserError, match="expected no folder of another run, got one with a run.json"):
            call(overwrite=True)


@pytest.mark.slow
def test_weights_and_graph_of_one_model_in_one_folder(exported, tmp_path, monkeypatch):
    copied(monkeypatch, exported)
    one, other = tmp_path / "one", tmp_path / "other"
    export_graphs(str(exported), ONNX, str(one))
    export_safetensors(str(exported), str(one))
    export_safetensors(str(exported), str(other))
    export_graphs(str(exported), ONNX, str(other))
    for folder in (one, other):
        assert names(folder) >= {"model.safetensors", "onnx/model.onnx"}
        ours, theirs = (load(folder, backend=backend).predict(TEXTS[:3]) for backend in (ONNX, "torch"))
        assert [each.label for each in ours] == [each.label for each in theirs]


@pytest.mark.slow
def test_what_changes_a_graph_beside_weights(tmp_path, monkeypatch):
    """Pooling is in the graph; names of labels and what was fitted to an evaluation are not."""
    folder = save(small_task("embedding"), tmp_path / "model")
    export_graphs(str(folder), ONNX, str(folder))
    load(folder, backend=ONNX)
    pooling = folder / "1_Pooling" / "config.json"
    before = pooling.read_text()
    pooling.write_text(before.replace('"pooling_mode_cls_token": false', '"pooling_mode_cls_token": true'))
    with pytest.raises(UserError, match=r"a graph of another one, which differs in 1_Pooling/config\.json"):
        load(folder, backend=ONNX)
    pooling.write_text(before)
    config = json.loads((folder / "config.json").read_text())
    config["bertorch"] |= {name: {} for name in FITTED}
    (folder / "config.json").write_text(json.dumps(config))
    digests, _ = made_of(folder, {})
    assert digests == json.loads(record_path(folder / "onnx" / "model.onnx").read_text())["made_of"]
    assert {kind.fitted for kind in FITTINGS.values()} == {*FITTED}


def test_a_damaged_record_can_be_replaced(exported, tmp_path, monkeypatch):
    copied(monkeypatch, exported)
    output = tmp_path / "export"
    export_graphs(str(exported), ONNX, str(output))
    record_path(output / "onnx" / "model.onnx").write_text("{")
    with pytest.raises(UserError, match="expected the record of an export, got .*; export again, with --overwrite"):
        load(output, backend=ONNX)
    export_graphs(str(exported), ONNX, str(output), overwrite=True)
    load(output, backend=ONNX)


def test_a_graph_of_another_program(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    record_path(folder / "onnx" / "model.onnx").unlink()
    with pytest.raises(UserError, match="model.onnx without a record, which another program made"):
        load(folder, backend=ONNX)


def test_a_model_that_changes_meanwhile(exported, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(exported, source)

    def changed(model, padded, path):
        shutil.copyfile(exported / "onnx" / "model.onnx", path)
        save(small_task("classification", seed=1), source)

    monkeypatch.setattr(export, "write_graph", changed)
    with pytest.raises(UserError, match="expected it not to change meanwhile, and it did; export again"):
        export_graphs(str(source), ONNX, str(tmp_path / "export"))
    assert not (tmp_path / "export").exists()


def test_what_a_graph_has_not_is_not_left_from_an_older_one(exported, tmp_path, monkeypatch):
    copied(monkeypatch, exported)
    output = tmp_path / "export"
    export_graphs(str(exported), ONNX, str(output))
    (output / "onnx" / "model.head.npz").write_bytes(b"of an older one")
    export_graphs(str(exported), ONNX, str(output), overwrite=True)
    assert "onnx/model.head.npz" not in names(output)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="--model_dir .*nothing: expected the folder that a run saved, got no folder"):
        export_graphs(str(tmp_path / "nothing"), ONNX, str(tmp_path / "export"))


def test_safetensors(exported, tmp_path):
    output = tmp_path / "export"
    check = export_safetensors(str(exported), str(output))
    assert check.value == 0
    expected = torch.load(exported / "pytorch_model.bin")
    weights = load_file(output / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    tokenizer = AutoTokenizer.from_pretrained(output)
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        ours, theirs = (
            AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits for folder in (output, exported)
        )
    assert torch.equal(ours, theirs)
    for folder, message in (
        (exported, "expected another folder than --model_dir"),
        (output, "model.safetensors: expected no file of this name, got one"),
    ):
        with pytest.raises(UserError, match=message):
            export_safetensors(str(exported), str(folder))
    with pytest.raises(UserError, match="expected weights in a .bin file, got model.safetensors already"):
        export_safetensors(str(output), str(tmp_path / "again"))


def test_into_the_folder_behind_a_link(exported, tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    export_safetensors(str(exported), str(link))
    assert link.is_symlink()
    assert {"model.safetensors", "config.json", CARD} <= names(real)
    assert not any(name.startswith(".unfinished") for name in names(real))


def test_damaged_weights_can_be_replaced(exported, tmp_path):
    output = tmp_path / "export"
    export_safetensors(str(exported), str(output))
    whole = (output / "model.safetensors").read_bytes()
    (output / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="model.safetensors"):
        export_safetensors(str(exported), str(output))
    export_safetensors(str(exported), str(output), overwrite=True)
    assert (output / "model.safetensors").read_bytes() == whole


def test_a_full_disk_is_one_sentence(exported, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.serialize_file", full)
    with pytest.raises(UserError, match="expected a file that can be written, got: .*No space left on device"):
        export_safetensors(str(exported), str(tmp_path / "export"))
    assert not names(tmp_path / "export")


@pytest.mark.slow
def test_what_the_hub_is_told(exported, tmp_path, monkeypatch):
    """By the one who publishes; the rest of the metadata and the text stay."""
    source = tmp_path / "source"
    shutil.copytree(exported, source)
    copied(monkeypatch, exported)
    hub = HubOptions("apache-2.0", ("zh", "en"), ("a/reviews",))
    export_safetensors(str(source), str(tmp_path / "export"), hub=hub)
    read, before = (ModelCard.load(folder / CARD) for folder in (tmp_path / "export", source))
    assert (read.data.license, read.data.language, read.data.datasets) == ("apache-2.0", ["zh", "en"], ["a/reviews"])
    given = {"license", "language", "datasets"}
    assert {name: value for name, value in read.data.to_dict().items() if name not in given} == before.data.to_dict()
    assert MARK in read.text
    assert read.text.count("## Export") == 1
    export_graphs(str(source), ONNX, str(tmp_path / "export"), hub=HubOptions(languages=("de",)))
    again = ModelCard.load(tmp_path / "export" / CARD)  # an export beside it keeps what it is not told anew
    assert again.data.to_dict() == read.data.to_dict() | {"language": ["de"]}
    assert "The weights in `model.safetensors` are those of the run" in again.text
    assert "| `onnx/model.onnx` |" in again.text
    (source / CARD).write_text(f"---\ntags: [\n---\n{MARK}\n")
    with pytest.raises(UserError, match="README.md: expected a card with metadata that the hub reads, got "):
        export_safetensors(str(source), str(tmp_path / "again"), hub=hub)


def test_safetensors_of_an_embedder_open_in_sentence_transformers(tmp_path):
    folder = save(small_task("pooler and dense"), tmp_path / "model")
    export_safetensors(str(folder), str(tmp_path / "export"))
    assert names(tmp_path / "export") == names(folder) - {"pytorch_model.bin"} | {"model.safetensors", CARD}
    ours, theirs = (
        SentenceTransformer(str(path), device="cpu").encode(TEXTS, show_progress_bar=False)
        for path in (tmp_path / "export", folder)
    )
    assert (ours == theirs).all()
