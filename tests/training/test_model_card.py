import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard as HubCard

from bertorch.training.model_card import CARD, ModelCard, is_of_others
from run_classifier import ClassifierConfig
from tests.conftest import REVIEWS, TINY, run_script
from tests.short_runs import config

HISTORY = [
    {"step": 10, "dev_accuracy": 0.5, "dev_loss": 0.75},
    {"step": 20, "dev_accuracy": 0.625, "dev_loss": 0.5},
]


def card(folder, *, tag="text-classification", history=HISTORY, **options) -> ModelCard:
    return ModelCard(config(folder, **options), pipeline_tag=tag, step=20, history=history, precision="fp32")


@pytest.mark.parametrize(
    ("tag", "library", "call"),
    [
        ("text-classification", "transformers", ".predict(["),
        ("token-classification", "transformers", ".tag(["),
        ("sentence-similarity", "sentence-transformers", ".encode(["),
    ],
)
def test_the_hub_reads_it(tag, library, call, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_x.py", "--saved_dir", "a b"])
    read = HubCard(card(tmp_path, tag=tag).text())
    assert read.data.pipeline_tag == tag
    assert read.data.library_name == library
    assert read.data.tags == ["bertorch"]
    assert read.data.base_model == "bert-base-chinese"
    assert call in read.text
    assert "python run_x.py --saved_dir 'a b'" in read.text
    assert "| 20 | 0.62500 | 0.50000 |" in read.text


def test_a_local_encoder_is_no_model_of_the_hub(tmp_path):
    options = config(tmp_path)
    local = replace(options, pretrained_model_name_or_path=str(TINY))
    text = ModelCard(local, pipeline_tag="text-classification", step=1, history=[], precision="fp32").text()
    assert "base_model" not in text
    assert "Dev metrics" not in text


def test_a_readme_of_somebody_else_is_left_alone(tmp_path, log_lines):
    (tmp_path / CARD).write_text("mine")
    (tmp_path / "staging").mkdir()
    card(tmp_path).save_pretrained(tmp_path / "staging")
    assert list((tmp_path / "staging").iterdir()) == []
    assert log_lines == [f"{tmp_path / CARD}: is not ours, so there is no model card"]


def test_a_run_does_not_clear_away_what_somebody_has_written_in_its_place(tmp_path):
    options = [
        *("--pretrained_model_name_or_path", TINY, "--label_file", REVIEWS / "labels.txt", "--overwrite"),
        *("--train_data_file", REVIEWS / "train.txt", "--max_seq_length", 16, "--saved_dir", tmp_path),
        *("--max_steps", 2, "--save_steps", 1),
    ]
    run_script("run_classifier.py", *options)
    assert not is_of_others(tmp_path / CARD)
    (tmp_path / CARD).write_text("mine")
    run_script("run_classifier.py", *options)
    assert (tmp_path / CARD).read_text() == "mine"


@pytest.mark.parametrize("folder", ["plain", "quotes \"' and \\"])
@pytest.mark.parametrize("is_pair", [False, True])
def test_its_code_is_what_the_model_takes(folder, is_pair, tmp_path, monkeypatch):
    """Run with stand-ins for both libraries that remember what they were called with."""
    called = []
    prediction = SimpleNamespace(label="x")
    model = SimpleNamespace(predict=lambda inputs: (called.append(inputs), [prediction])[1])
    monkeypatch.setattr("bertorch.load", lambda path: (called.append(path), model)[1])
    transformers = SimpleNamespace(pipeline=lambda task, model: lambda text: called.extend([task, model, text]))
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    options = ClassifierConfig(
        pretrained_model_name_or_path="bert-base-chinese",
        train_data_file="train.txt",
        label_file="labels.txt",
        saved_dir=str(tmp_path / folder),
        is_text_pair=is_pair,
    )
    text = ModelCard(options, pipeline_tag="text-classification", step=1, history=[], precision="fp32").text()
    for block in re.findall("```python\n(.*?)```", text, re.DOTALL):
        exec(block, {})
    first, second = "房间干净，早餐也丰富。", "早餐不错。"
    ours, theirs = ((first, second), {"text": first, "text_pair": second}) if is_pair else (first, first)
    path = str(tmp_path / folder)
    assert called == [path, [ours], "text-classification", path, theirs]


def test_our_own_is_replaced(tmp_path):
    for _ in range(2):
        card(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text() == card(tmp_path).text()


def test_a_run_leaves_its_card(tmp_path):
    run_script(
        "run_classifier.py",
        *("--pretrained_model_name_or_path", TINY, "--label_file", REVIEWS / "labels.txt"),
        *("--train_data_file", REVIEWS / "train.txt", "--dev_data_file", REVIEWS / "dev.txt"),
        *("--max_seq_length", 16, "--epochs", 1, "--eval_steps", 5, "--saved_dir", tmp_path),
    )
    text = Path(tmp_path / CARD).read_text()
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith(("| 1", "| 5"))] == [
        "| 5",
        "| 10",
        "| 15",
    ]
    assert "These are the weights after step 15" in text
    assert f"--saved_dir {tmp_path}" in text
