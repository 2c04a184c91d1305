import ast
import re
import shlex
import sys
from dataclasses import replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard as HubCard
from markdown_it import MarkdownIt

from bertorch.data.lines import cell
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.precision import Precision
from bertorch.tasks.calibration import Temperature
from bertorch.tasks.classification import ClassificationTask
from bertorch.tasks.fitting import FittedFile
from bertorch.training.model_card import CARD, ModelCard, is_foreign, update_card
from tests.architectures import small_classifier
from tests.conftest import REVIEWS, TINY, run_script
from tests.short_runs import config
from tests.small_tasks import (
    classification_task,
    contrastive_task,
    global_pointer_task,
    ranking_task,
    score_task,
    siamese_task,
    tagging_task,
)

HISTORY = [
    {"step": 10, "dev_accuracy": 0.5, "dev_loss": 0.75},
    {"step": 20, "dev_accuracy": 0.625, "dev_loss": 0.5},
]


# What evaluations record first.
METRICS_OF_TASKS = ("accuracy", "micro_F1", "spearman", "mrr@10", "ndcg@10", "F1")
FP32 = Precision("fp32", "cpu")


def card(folder, *, task=None, history=HISTORY, **options) -> ModelCard:
    task = task or classification_task()
    return ModelCard(config(folder, **options), task, step=20, history=history, precision=FP32)


@pytest.mark.parametrize(
    ("make_task", "expected", "call"),
    [
        (classification_task, ("text-classification", "transformers"), ".predict(["),
        (score_task, ("text-classification", "transformers"), ".predict(["),
        (ranking_task, ("text-ranking", "sentence-transformers"), ".rank("),
        (partial(tagging_task, use_crf=True), ("token-classification", "transformers"), ".tag(["),
        (
            global_pointer_task,
            ("token-classification", "transformers"),
            "nested decoding: entities may lie inside each other",
        ),
        (siamese_task, ("sentence-similarity", "sentence-transformers"), ".encode(["),
        (contrastive_task, ("sentence-similarity", "sentence-transformers"), ".encode(["),
    ],
)
def test_the_hub_reads_it(make_task, expected, call, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_x.py", "--saved_dir", "a b"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    read = HubCard(card(tmp_path, task=make_task()).text())
    assert (read.data.pipeline_tag, read.data.library_name) == expected
    assert read.data.tags == ["bertorch"]
    assert read.data.base_model == "bert-base-chinese"
    assert call in read.text
    assert "python run_x.py --saved_dir 'a b'" in read.text
    assert "| 20 | 0.62500 | 0.50000 |" in read.text


def test_a_module_is_named_as_it_was_started(tmp_path, monkeypatch):
    """By `python -m`, where argv has a path that says nothing to others."""
    monkeypatch.setattr(sys, "argv", ["/site-packages/run_x.py", "--epochs", "2"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("run_x", None))
    assert "\npython -m run_x --epochs 2\n" in card(tmp_path).text()


def test_the_hub_reads_what_the_weights_gave_on_the_dev_data(tmp_path):
    """Of the step that they are of; a loss is none of the hub's metrics."""
    read = HubCard(card(tmp_path / "model", dev_data_file="data/dev.tsv").text())
    [result] = read.data.eval_results
    assert (result.metric_type, result.metric_name, result.metric_value) == ("accuracy", "accuracy", 0.625)
    assert (result.dataset_name, result.task_type) == ("dev.tsv", "text-classification")
    assert read.data.model_name == "model"
    assert HubCard(card(tmp_path, history=[]).text()).data.eval_results is None


@pytest.mark.parametrize("name", METRICS_OF_TASKS)
def test_the_main_metric_of_every_task_is_one_of_the_hub(name, tmp_path):
    history = [{"step": 20, f"dev_{name}": 0.5}]
    [result] = HubCard(card(tmp_path, history=history).text()).data.eval_results
    assert result.metric_name == name


def test_it_says_what_the_loss_does_to_probabilities(tmp_path):
    task = classification_task()
    assert "Note: " not in card(tmp_path, task=task).text()
    task._loss_record = {"class_weights": "balanced", "label_smoothing": 0.1}
    text = card(tmp_path, task=task).text()
    assert all(f"\nNote: {note}.\n" in text for note in task.notes())
    assert len(task.notes()) == 2


@pytest.mark.parametrize(("name", "shown"), [("a`b\n## Use\n.txt", "``a`b ## Use .txt``"), (None, "a file")])
def test_it_says_what_was_fitted_whatever_the_file_is_called(name, shown, tmp_path):
    task = classification_task()
    plain = card(tmp_path, task=task).text()
    (tmp_path / CARD).write_text(plain)
    task.temperature = Temperature(1.5, FittedFile("digest", name))
    for _ in range(2):
        update_card(str(tmp_path), task)
        assert (
            f"\n\nNote: the probabilities are calibrated with the temperature 1.5000, fitted on {shown}.\n\n## Tr"
            in (tmp_path / CARD).read_text()
        )
    assert (tmp_path / CARD).read_text() == card(tmp_path, task=task).text()
    task.temperature = Temperature()
    update_card(str(tmp_path), task)
    assert (tmp_path / CARD).read_text() == plain


def test_a_local_encoder_is_no_model_of_the_hub(tmp_path):
    options = config(tmp_path)
    local = replace(options, pretrained_model_name_or_path=str(TINY))
    text = ModelCard(local, classification_task(), step=1, history=[], precision=FP32).text()
    assert "base_model" not in text
    assert "Dev metrics" not in text


def test_a_readme_of_somebody_else_is_left_alone(tmp_path, log_lines):
    (tmp_path / CARD).write_text("mine")
    (tmp_path / "staging").mkdir()
    card(tmp_path).save_pretrained(tmp_path / "staging")
    assert list((tmp_path / "staging").iterdir()) == []
    assert log_lines == [f"{tmp_path / CARD}: is not ours, so there is no model card"]


@pytest.mark.slow
def test_a_run_does_not_clear_away_what_somebody_has_written_in_its_place(tmp_path):
    options = [
        *("--pretrained_model_name_or_path", TINY, "--label_file", REVIEWS / "labels.txt", "--overwrite"),
        *("--train_data_file", REVIEWS / "train.txt", "--max_seq_length", 16, "--saved_dir", tmp_path),
        *("--max_steps", 2, "--save_steps", 1),
    ]
    run_script("run_classifier.py", *options)
    assert not is_foreign(tmp_path / CARD)
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
    task = ClassificationTask(SequenceClassifier(small_classifier("bert")), ["a", "b", "c"], text_pair=is_pair)
    text = card(tmp_path / folder, task=task).text()
    for block in re.findall("```python\n(.*?)```", text, re.DOTALL):
        exec(block, {})
    first, second = "房间干净，早餐也丰富。", "早餐不错。"
    ours, theirs = ((first, second), {"text": first, "text_pair": second}) if is_pair else (first, first)
    path = str(tmp_path / folder)
    assert called == [path, [ours], "text-classification", path, theirs]


def test_the_code_of_a_reranker_is_what_both_libraries_take(tmp_path, monkeypatch):
    called = []
    rankers = [SimpleNamespace(rank=lambda *inputs: called.append(inputs)) for _ in range(2)]
    monkeypatch.setattr("bertorch.load", lambda path: (called.append(path), rankers[0])[1])
    peer = SimpleNamespace(CrossEncoder=lambda path: (called.append(path), rankers[1])[1])
    monkeypatch.setitem(sys.modules, "sentence_transformers", peer)
    for block in re.findall("```python\n(.*?)```", card(tmp_path, task=ranking_task()).text(), re.DOTALL):
        exec(block, {})
    assert called[:2] == called[2:]
    assert called[0] == str(tmp_path)
    query, candidates = called[1]
    assert isinstance(query, str)
    assert len(candidates) == 2


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


UTF8_NAME = "a\tb\n```\n# c `d` \u2028"
NAME = "a\tb\n```\n# c `d` \udcff: {x}"


def test_names_from_files_break_no_markdown_no_metadata_and_no_code(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_x.py", "--saved_dir", NAME])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    options = {"train_data_file": NAME, "dev_data_file": f"`{NAME}`", "pretrained_model_name_or_path": f"x/{NAME}"}
    named = card(tmp_path)
    named = replace(named, config=replace(named.config, saved_dir=str(tmp_path / UTF8_NAME), **options))
    named.save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    read = HubCard(text)
    assert read.data.base_model == f"x/{NAME}"
    parsed = MarkdownIt().parse(read.text)
    headings = [parsed[index + 1].content for index, token in enumerate(parsed) if token.type == "heading_open"]
    shown = cell(NAME).encode(errors="backslashreplace").decode()
    assert headings[0] == f"````{shown}````, fine-tuned"
    assert headings[1:] == ["Use", "Training", "Dev metrics", "Versions"]
    code = {token.info: token.content for token in parsed if token.type == "fence"}
    assert shlex.split(code["bash"])[-1] == NAME.encode(errors="backslashreplace").decode()
    [literal] = re.findall(r'pipeline\("text-classification", model=(".*")\)', code["python"])
    assert ast.literal_eval(literal) == str(tmp_path / UTF8_NAME)
    spans = [child.content for token in parsed for child in token.children or [] if child.type == "code_inline"]
    assert spans[1:] == [shown, f"`{shown}`"]
