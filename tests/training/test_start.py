"""What is found before the data is read."""

import json
import shutil

import pytest

from bertorch.config import ClassifierConfig
from bertorch.errors import UserError
from bertorch.training.loop import fit
from bertorch.training.run_folder import LOCK, RECORD
from bertorch.training.start import started
from tests.conftest import REVIEWS, TINY, run_script
from tests.short_runs import config, trained
from tests.small_tasks import classification_data, classification_task
from tests.test_run_classifier import arguments


def start(folder, **settings) -> None:
    with started(config(folder, **settings)):
        assert (folder / LOCK).exists()


@pytest.fixture
def finished(tmp_path):
    trained(tmp_path / "run", classification_task(), classification_data(8), epochs=1, batch_size=8, seed=5)
    return tmp_path / "run"


def told(folder, **settings) -> str:
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as refused:
        start(folder, **settings)
    assert sorted(folder.rglob("*")) == before
    return str(refused.value)


def test_another_run_is_recognised_by_its_options(finished):
    same = {"epochs": 1, "batch_size": 8, "seed": 5}
    start(finished, **same)
    start(finished, **same, resume=True, save_steps=7, threads=1)
    start(finished, **same, overwrite=True, max_seq_length=9)
    assert told(finished, **same | {"seed": 6}, max_seq_length=9).splitlines()[1:3] == [
        "  --max_seq_length: 128 there, 9 now",
        "  --seed: 5 there, 6 now",
    ]
    start(finished, **same | {"batch_size": 4})  # of two processes it may be the same


def test_data_that_changes_while_it_is_read_is_told(tmp_path):
    """Or the run would go on with other data than it began with."""
    data, labels = tmp_path / "train.txt", tmp_path / "labels.txt"
    data.write_text("好\tb\n")
    labels.write_text("a\nb\n")
    settings = config(tmp_path / "run", ClassifierConfig, train_data_file=str(data), label_file=str(labels))
    with started(settings):
        data.write_text("好\ta\n好\tb\n")
        with pytest.raises(
            UserError, match=f"{data}: expected a file that stays as it is while it is read, got another"
        ):
            fit(settings, classification_task(), classification_data(8), None)
    with started(settings):
        fit(settings, classification_task(), classification_data(8), None)


def test_layers_are_not_taken_from_the_folder_that_is_written(tmp_path):
    settings = {"pretrained_model_name_or_path": f"{tmp_path}/../{tmp_path.name}", "layers_from": "0,2"}
    assert "--layers_from 0,2: expected another --saved_dir than the model's folder" in told(tmp_path, **settings)


def test_another_program_is_recognised_by_its_files(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert "got model.safetensors of another program" in told(tmp_path)
    start(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16"}, "--precision fp16 needs a CUDA GPU"),
        ({"init_from_ckpt": "nowhere.bin"}, "nowhere.bin: expected a .bin or .safetensors file"),
    ],
)
def test_impossible_options(settings, message, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert message in told(tmp_path, **settings)


def test_a_run_that_goes_on_needs_no_weights_to_start_from(tmp_path):
    shutil.copy(TINY / "model.safetensors", tmp_path)
    settings = {"init_from_ckpt": str(tmp_path / "model.safetensors"), "epochs": 1}
    start(tmp_path / "run", **settings)
    trained(tmp_path / "run", classification_task(), classification_data(8), epochs=1)
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    record["options"]["--init_from_ckpt"] = settings["init_from_ckpt"]
    (tmp_path / "run" / RECORD).write_text(json.dumps(record))
    (tmp_path / "model.safetensors").unlink()
    start(tmp_path / "run", **settings)


def test_positions_are_counted_before_the_data_is_read_and_no_folder_is_left(tmp_path):
    settings = {"max_seq_length": 600, "train_data_file": "nowhere.txt"}
    done = run_script(*arguments(REVIEWS, tmp_path / "new" / "run", **settings), check=2)
    assert "--max_seq_length 600: expected at most 512" in done.stderr
    assert list(tmp_path.iterdir()) == []
