"""`--windows`: the logits of a long text are the mean over its windows, wherever they are computed."""

import json
from functools import partial
from typing import get_type_hints

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertorch import evaluate, load
from bertorch.config import ClassifierConfig
from bertorch.data.windowed_dataset import WindowedDataset
from bertorch.encoder.pooling import mean_over_windows
from bertorch.inference.load import load_trained
from bertorch.tasks.classification import ClassificationTask
from bertorch.tasks.ranking import RankingTask
from bertorch.tasks.registry import PROBLEMS
from bertorch.training.saving import publish
from tests.conftest import REVIEWS, TINY, run_script
from tests.log_lines import command
from tests.short_runs import assert_same_as_one_process
from tests.small_tasks import NO_DROPOUT, classification_task, ranking_task, windowed_data, windowed_task

SENTENCE = "今天天气很好，明天会下雨吗？我们去公园走一走，然后回家吃饭。"
TEXTS = ["好", SENTENCE * 5, SENTENCE, SENTENCE * 2 + "不好", "不好"]
QUERIES = ["天气", "好", "去哪里", "吃什么", "一"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


def tiny_task(tokenizer, *, pair: bool) -> ClassificationTask:
    torch.manual_seed(0)
    task = ClassificationTask.from_pretrained(
        str(TINY), tokenizer, ["a", "b", "c"], text_pair=pair, max_seq_length=16, windows=3
    )
    task.model.eval()
    return task


def plain_logits(task, tokenizer, *texts: str) -> torch.Tensor:
    """Of one text or pair: transformers' model on each of transformers' windows, one after the other, then the mean."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=3).eval()
    model.load_state_dict(task.model.weights.state_dict())
    query = tokenizer(texts[0], add_special_tokens=False)["input_ids"] if len(texts) == 2 else []
    room = 16 - tokenizer.num_special_tokens_to_add(pair=len(texts) == 2) - len(query)
    truncation = "only_second" if len(texts) == 2 else "only_first"
    settings = {"max_length": 16, "stride": room // 4, "return_overflowing_tokens": True}
    windows = tokenizer(*texts, truncation=truncation, **settings)["input_ids"][:3]
    logits = []
    for ids in windows:
        types = [0] * (len(query) + 2) + [1] * (len(ids) - len(query) - 2) if query else [0] * len(ids)
        with torch.no_grad():
            inputs = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([types])}
            logits.append(model(**inputs).logits[0])
    return torch.stack(logits).mean(dim=0)  # (C,)


@pytest.mark.parametrize("columns", [[TEXTS], [QUERIES, TEXTS]], ids=["texts", "pairs"])
def test_the_logits_are_the_mean_over_the_windows_of_transformers(columns, tokenizer):
    task = tiny_task(tokenizer, pair=len(columns) == 2)
    batch = task._tokenized(columns, np.zeros(len(TEXTS), np.int64)).batch(np.arange(len(TEXTS)))
    assert batch.window_counts.tolist()[:2] == [1, 3]
    expected = torch.stack([plain_logits(task, tokenizer, *row) for row in zip(*columns, strict=True)])  # (N, C)
    with torch.no_grad():
        torch.testing.assert_close(task.outputs(batch), expected, rtol=1e-5, atol=1e-6)


def test_the_logits_of_a_group_are_those_of_its_pairs(tokenizer):
    """The query with each of three candidates, as a ranking's training examples have them."""
    task = tiny_task(tokenizer, pair=True)
    candidates = [TEXTS, TEXTS[::-1], [SENTENCE] * 5]
    data = WindowedDataset.of_windows(
        tokenizer, [QUERIES, *candidates], np.zeros(5, np.int64), max_length=16, windows=3
    )
    with torch.no_grad():
        logits = task.outputs(data.batch(np.array([3, 1]))).view(2, 3, -1)  # (groups, S, C)
    for row, index in enumerate((3, 1)):
        expected = [plain_logits(task, tokenizer, QUERIES[index], column[index]) for column in candidates]
        torch.testing.assert_close(logits[row], torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_the_mean_is_at_least_in_fp32():
    """In bf16, 256 + 1 is 256."""
    logits = torch.tensor([[256.0], [1.0], [1.0], [3.0]], dtype=torch.bfloat16, requires_grad=True)
    mean = mean_over_windows(logits, torch.tensor([3, 1]))
    assert mean.dtype == torch.float32
    assert mean.tolist() == [[86.0], [3.0]]
    mean[0].sum().backward()
    assert logits.grad.flatten().tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], rel=1e-2)
    assert mean_over_windows(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 4)


def test_a_batch_of_windows_gives_each_example_what_it_has_alone():
    task, data = windowed_task(**NO_DROPOUT), windowed_data(12)
    task.model.eval()
    together = task.outputs(data.batch(np.arange(12)))
    alone = torch.cat([task.outputs(data.batch(np.array([index]))) for index in range(12)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    losses = task.losses(data.batch(np.arange(12)))
    expected = -alone.log_softmax(-1)[torch.arange(12), torch.from_numpy(data.labels)].sum()
    torch.testing.assert_close(losses["loss"], expected, rtol=1e-5, atol=1e-6)


def test_the_model_card_says_that_other_programs_have_none():
    comment = "# truncates a text that bertorch cuts into up to 3 windows\nprint("
    tasks = windowed_task(), RankingTask(ranking_task().model, text_pair=True, windows=3)
    assert [comment in task.usage()[1] for task in tasks] == [True, True]
    assert "#" not in ranking_task().usage()[1]


@pytest.mark.slow
def test_processes_train_as_one(tmp_path):
    settings = {"batch_size": 4, "epochs": 1, "dev_data_file": None, "save_steps": 100}
    assert_same_as_one_process(tmp_path, 2, partial(windowed_task, **NO_DROPOUT), windowed_data(19), settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with windows, on reviews of which most are longer than one, and its log."""
    folder = tmp_path_factory.mktemp("run")
    lines = (REVIEWS / "train.txt").read_text().splitlines()[:64]
    (folder / "train.txt").write_text("\n".join(lines))
    settings = {"label_file": REVIEWS / "labels.txt", "max_seq_length": 16, "windows": 3, "epochs": 1}
    arguments = command("run_classifier.py", folder / "train.txt", REVIEWS / "dev.txt", folder / "saved", **settings)
    return folder / "saved", run_script(*arguments, "--learning_rate", "1e-3").stderr


def test_training_evaluation_and_prediction_agree(run, tmp_path):
    folder, log = run
    lines = [line.split("\t") for line in (REVIEWS / "dev.txt").read_text().splitlines()]
    predictions = load(folder).predict([text for text, _ in lines])
    gold = [label for _, label in lines]
    accuracy = np.mean([each.label == label for each, label in zip(predictions, gold, strict=True)])
    loss = np.mean([-np.log(each.probabilities[label]) for each, label in zip(predictions, gold, strict=True)])
    assert f"eval loss: {loss:.4f}" in log  # the fifth digit may round the other way
    assert f"accuracy: {accuracy:.5f}" in log
    options = {"model_dir": str(folder), "input_file": str(REVIEWS / "dev.txt"), "output_dir": str(tmp_path)}
    evaluate.run(evaluate.EvaluateConfig(**options))
    assert json.loads((tmp_path / "report.json").read_text())["accuracy"] == pytest.approx(accuracy)


def test_the_folder_knows_its_windows(run, tokenizer):
    folder, _ = run
    config = json.loads((folder / "config.json").read_text())
    assert config["bertorch"]["windows"] == 3
    model = load(folder)
    assert model.task.settings() == {"text_pair": False, "windows": 3}
    (found,) = model.predict([SENTENCE * 3])
    batch = model.task._tokenized([[SENTENCE * 3]], np.zeros(1)).batch(np.arange(1))
    assert batch.window_counts.tolist() == [3]
    with torch.inference_mode():
        expected = model.task.outputs(batch).softmax(-1)[0].tolist()
    assert list(found.probabilities.values()) == pytest.approx(expected, abs=1e-5)
    (whole,) = load(folder, max_seq_length=128).predict([SENTENCE * 3])  # fits: one window
    assert abs(whole.probabilities["positive"] - found.probabilities["positive"]) > 1e-4


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_type_takes_the_option(problem, tokenizer, tmp_path):
    """To its examples of training and dev, and to its folder."""
    has_labels = problem in ("single_label", "multi_label")
    config = ClassifierConfig(
        train_data_file="train",
        pretrained_model_name_or_path=str(TINY),
        label_file="labels" if has_labels else None,
        problem_type=problem,
        windows=2,
        max_seq_length=16,
    )
    label_names = ["a", "b", "c"] if has_labels else []
    for read in PROBLEMS[problem].readers(config, label_names):
        assert get_type_hints(read.func)["return"] is WindowedDataset
        assert read.keywords["windows"] == 2
    task = PROBLEMS[problem].from_config(config, tokenizer, label_names, windowed_data(9))
    assert task.settings()["windows"] == 2
    publish(str(tmp_path), task.model.weights.state_dict(), task.savables)
    again = load_trained(tmp_path)
    assert (again.windows, again.graph_obstacle) == (2, "--windows 2")


def test_examples_with_windows_need_a_task_that_saves_them(tokenizer):
    with pytest.raises(AssertionError, match="the folder would not know"):
        classification_task().outputs(windowed_data(3).batch(np.arange(3)))


def test_a_folder_without_windows_is_as_before(tokenizer):
    torch.manual_seed(0)
    task = ClassificationTask.from_pretrained(str(TINY), tokenizer, ["a", "b"], text_pair=False, max_seq_length=16)
    assert task.settings() == {"text_pair": False}
    assert task.graph_obstacle is None
    assert task._tokenized([TEXTS], np.zeros(5)).batch(np.arange(5)).window_counts is None
