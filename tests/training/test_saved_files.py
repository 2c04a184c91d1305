"""Whose files are in `--saved_dir`, and who can read ours."""

import json
import os
import stat

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.errors import UserError
from bertorch.tasks.contrastive import ContrastiveTask
from bertorch.tasks.in_batch_negatives import InBatchNegatives
from bertorch.training.metrics_file import METRICS
from bertorch.training.run_folder import RECORD
from bertorch.training.saved_files import is_known, recorded_files
from bertorch.weights import WEIGHTS
from tests.conftest import TINY
from tests.short_runs import trained
from tests.small_tasks import CONTRASTIVE, classification_data, classification_task, contrastive_data
from tests.training.test_run_folder import Note, names, opened, save


def sharded(folder) -> None:
    """As transformers saves a large model."""
    model = AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=2)
    model.save_pretrained(folder, max_shard_size="1MB")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    assert (folder / "model.safetensors.index.json").exists()


def test_sharded_weights_are_refused_and_cleared_by_overwrite(tmp_path):
    """transformers would load them instead of ours."""
    sharded(tmp_path)
    with pytest.raises(UserError, match="expected an empty folder or one of this run, got config.json, model-00001"):
        opened(tmp_path)
    folder, _ = opened(tmp_path, overwrite=True)
    save(folder, 3, savables=[Note("config.json")])
    assert {name for name in names(tmp_path) if "/" not in name} == {WEIGHTS, RECORD, "config.json"}


def test_after_overwriting_transformers_loads_ours(tmp_path):
    sharded(tmp_path)
    task = classification_task()
    trained(tmp_path, task, classification_data(16), overwrite=True)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ours = dict(task.model.weights.named_parameters())
    for name, tensor in loaded.named_parameters():
        assert torch.equal(tensor, ours[name]), name


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "pytorch_model.bin.index.json", "adapter_config.json", "config_sentence_transformers.json"),
        *("modules.json", "tokenizer.json", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja"),
    ],
)
def test_whatever_would_be_loaded_with_ours_or_in_its_stead_is_refused(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"got {name} of another program"):
        opened(tmp_path)
    save(opened(tmp_path, overwrite=True)[0], 9)
    assert not (tmp_path / name).exists()
    (tmp_path / name).write_text("{}")  # somebody has put it beside ours
    with pytest.raises(UserError, match=f"got {name} of another program"):
        opened(tmp_path)


def test_what_is_not_loaded_may_be_there(tmp_path):
    for name in ("notes.txt", "vocab.txt", "labels.txt"):
        (tmp_path / name).touch()
    (tmp_path / "checkpoint-best").mkdir()
    save(opened(tmp_path)[0], 9)
    assert {"notes.txt", "vocab.txt", "labels.txt"} <= names(tmp_path)


HOSTILE = ["../victim", "/victim", ".", "..", "", "notes.txt", "run.json", "1_Pooling/../../victim", 5, None, ["x"], {}]
HOSTILE += [
    "1_Pooling/victim",
    "config.json\n",
    "config.json/../../victim",
    "checkpoint-3/config.json",
    "./config.json",
]


def test_a_record_names_only_files_that_a_save_may_write(tmp_path, log_lines):
    expected = {WEIGHTS, "config.json", "2_Dense/model.safetensors"}
    assert recorded_files([*HOSTILE, str(tmp_path), *expected], tmp_path / RECORD) == expected
    assert log_lines == [f"{tmp_path / RECORD}: ignores names of files that no save writes: {len(HOSTILE) + 1}"]


def test_a_hostile_record_has_nothing_deleted(tmp_path, log_lines):
    victims = [tmp_path / "victim", tmp_path / "run" / "notes.txt", tmp_path / "elsewhere" / "config.json"]
    save(opened(tmp_path / "run")[0], 9)
    (tmp_path / "elsewhere").mkdir()
    for victim in victims:
        victim.write_text("kept")
    (tmp_path / "run" / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "spiece.model").symlink_to(tmp_path / "victim")
    (tmp_path / "run" / "vocab.txt").mkdir()
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    record["files"] = [*HOSTILE, *map(str, victims), "1_Pooling/config.json", "spiece.model", "vocab.txt"]
    (tmp_path / "run" / RECORD).write_text(json.dumps(record))
    (tmp_path / "run" / WEIGHTS).unlink()
    save(opened(tmp_path / "run", overwrite=True)[0], 3, savables=[Note("2_Dense/config.json")])
    assert [victim.read_text() for victim in victims] == ["kept"] * 3
    assert not (tmp_path / "run" / "spiece.model").is_symlink()  # the link itself is in the folder
    assert (tmp_path / "run" / "vocab.txt").is_dir()
    assert any("ignores names of files that no save writes" in line for line in log_lines)


def test_a_folder_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    save(opened(tmp_path / "run")[0], 3, savables=[Note("1_Pooling/config.json")])
    assert (tmp_path / "elsewhere" / "config.json").read_text() == "kept"
    assert (tmp_path / "run" / "1_Pooling" / "config.json").read_text() == "note"


@pytest.mark.parametrize("umask", [0o002, 0o027], ids=oct)
def test_files_and_folders_of_a_run_follow_the_umask(umask, tmp_path):
    """All kinds that a run writes: weights, checkpoints, tokenizer, modules with weights of their own."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    embedder = SentenceEncoder.from_pretrained(str(TINY), pooling_mode="linear", output_emb_size=8)
    task = ContrastiveTask(embedder, loss=InBatchNegatives(**CONTRASTIVE), tokenizer=tokenizer, max_seq_length=32)
    before = os.umask(umask)
    try:
        trained(tmp_path / "run", task, contrastive_data(8), max_steps=1, logging_steps=1)
    finally:
        os.umask(before)
    paths = list((tmp_path / "run").rglob("*"))
    written = {str(path.relative_to(tmp_path / "run")) for path in paths}
    checkpoint = {f"checkpoint-1/{name}.safetensors" for name in ("model", "optimizer")}
    assert written >= checkpoint | {"2_Dense/model.safetensors", "tokenizer.json", RECORD, METRICS, "README.md"}
    assert all(
        is_known(name) for name in written if name != RECORD and not name.startswith("checkpoint") and "." in name
    )
    for path in [tmp_path / "run", *paths]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path
