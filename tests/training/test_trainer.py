"""The train loop on one process and on several, in float64 where exactness is shown."""

import numpy as np
import pytest
import torch

from bertorch.config import TrainingConfig
from bertorch.data.batching import Dataset
from bertorch.data.tokenization import TokenStore
from bertorch.models.classifier import SequenceClassifier
from bertorch.training import checkpoint, trainer
from bertorch.training.step import Precision
from bertorch.training.tasks import ClassificationTask
from bertorch.training.trainer import evaluate, fit
from tests.architectures import VOCABULARY, small_classifier
from tests.conftest import run_processes

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def random_dataset(size: int, seed: int = 0) -> Dataset:
    """Sentences of 3 to 20 tokens whose class depends on their first token."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 21, size)
    tokens = generator.integers(5, VOCABULARY - 1, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], lengths]).cumsum()
    store = TokenStore(tokens, np.zeros(len(tokens), dtype=np.int8), offsets)
    return Dataset(store, np.arange(size)[:, None], labels=tokens[offsets[:-1]].astype(np.int64) % 3)


def make_task(**settings) -> ClassificationTask:
    return ClassificationTask(SequenceClassifier(small_classifier("bert", **settings)), companions=[])


def config(folder, **settings) -> TrainingConfig:
    defaults = {"batch_size": 8, "epochs": 2, "save_steps": 3, "logging_steps": 2, "learning_rate": 1e-3}
    return TrainingConfig(train_data_file="-", dev_data_file="-", saved_dir=str(folder), **(defaults | settings))


def train_in_double(folder, size, settings) -> None:
    """Train without dropout in float64; every process leaves its weights."""
    task = make_task(**NO_DROPOUT)
    task.model.double()
    fit(config(folder, **settings), task, random_dataset(size), random_dataset(10, seed=1))
    torch.save(task.weights.state_dict(), f"{folder}/rank{torch.distributed.get_rank()}.pt")


def eval_lines(lines):
    return [line for line in lines if line.startswith("eval loss")]


@pytest.mark.parametrize(
    ("world_size", "batch_size", "size", "accumulation"),
    [(2, 4, 21, 1), (2, 4, 17, 1), (3, 4, 26, 2), (2, 8, 5, 1)],
    ids=["uneven last batch", "a process without examples", "three processes, accumulation", "fewer than a batch"],
)
def test_several_processes_train_as_one(world_size, batch_size, size, accumulation, tmp_path):
    """W processes with batch B give the weights of one process with batch W·B, to 1e-9 in float64."""
    settings = {"gradient_accumulation_steps": accumulation, "weight_decay": 0.01, "max_grad_norm": 0.5}
    (tmp_path / "many").mkdir()
    run_processes(world_size, train_in_double, tmp_path / "many", size, settings | {"batch_size": batch_size})

    task = make_task(**NO_DROPOUT)
    task.model.double()
    start = {name: tensor.clone() for name, tensor in task.weights.state_dict().items()}
    settings["batch_size"] = world_size * batch_size
    fit(config(tmp_path / "one", **settings), task, random_dataset(size), None)
    for rank in range(world_size):
        weights = torch.load(tmp_path / "many" / f"rank{rank}.pt")
        for name, expected in task.weights.state_dict().items():
            torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-9, msg=f"rank {rank}: {name}")
    assert not torch.allclose(start["classifier.weight"], task.weights.state_dict()["classifier.weight"], atol=1e-4)


def evaluate_in_double(folder, batch_size) -> None:
    task = make_task()
    task.model.double()
    metric = evaluate(task, random_dataset(23), batch_size, Precision("fp32", "cpu"))
    (folder / f"{torch.distributed.get_rank()}.txt").write_text(f"{metric.line()} {metric.value!r}")


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_does_not_depend_on_processes_or_batch_size(world_size, tmp_path):
    task = make_task()
    task.model.double()
    metrics = [evaluate(task, random_dataset(23), size, Precision("fp32", "cpu")) for size in (1, 7, 32)]
    expected = f"{metrics[0].line()} {metrics[0].value!r}"
    assert [f"{metric.line()} {metric.value!r}" for metric in metrics] == [expected] * 3
    run_processes(world_size, evaluate_in_double, tmp_path, 7)
    assert [path.read_text() for path in tmp_path.iterdir()] == [expected] * world_size


def test_it_evaluates_and_saves_on_time_and_after_the_last_step(tmp_path, log_lines, monkeypatch):
    saves = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: saves.append(len(log_lines)) or save(*arguments))
    task = make_task()
    fit(config(tmp_path, save_steps=3, epochs=2), task, random_dataset(30), random_dataset(10, seed=1))
    steps = [line.split(",")[0] for line in log_lines if line.startswith("global step")]
    assert steps == [f"global step: {step}" for step in (2, 4, 6, 8)]
    assert len(eval_lines(log_lines)) == len(saves) == 3  # steps 3, 6 and the last, 8
    assert log_lines[-1] == f"weights of step 8: {tmp_path}/pytorch_model.bin"
    saved = checkpoint.load_weights(str(tmp_path))
    for name, tensor in task.weights.state_dict().items():
        assert torch.equal(saved[name], tensor)


def test_the_batch_number_starts_anew_each_epoch_and_counts_batches(tmp_path, log_lines):
    settings = {"batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1, "epochs": 2}
    fit(config(tmp_path, **settings), make_task(), random_dataset(20), None)
    lines = [line.split(", loss")[0] for line in log_lines if line.startswith("global step")]
    assert lines == [
        f"global step: {step}, epoch: {epoch}, batch: {batch}"
        for step, epoch, batch in [(1, 1, 2), (2, 1, 4), (3, 1, 5), (4, 2, 2), (5, 2, 4), (6, 2, 5)]
    ]


class ScriptedMetric:
    name = "accuracy"

    def __init__(self, value: float) -> None:
        self.value = value

    def line(self) -> str:
        return f"eval: {self.value}"


def test_the_best_model_alone_is_saved_on_demand(tmp_path, log_lines, monkeypatch):
    values = iter([0.5, 0.8, 0.6, 0.8])
    kept = []

    def scripted(task, *_):
        kept.append({name: tensor.clone() for name, tensor in task.weights.state_dict().items()})
        return ScriptedMetric(next(values))

    monkeypatch.setattr(trainer, "evaluate", scripted)
    settings = {"save_best_model": True, "save_steps": 1, "epochs": 1}
    fit(config(tmp_path, **settings), make_task(), random_dataset(32), random_dataset(1))
    assert log_lines[-2:] == [
        "best dev accuracy: 0.80000 at step 2",
        f"weights of step 2: {tmp_path}/pytorch_model.bin",
    ]
    for name, tensor in checkpoint.load_weights(str(tmp_path)).items():
        assert torch.equal(tensor, kept[1][name])


def test_training_learns_and_the_same_seed_gives_the_same_weights(tmp_path, log_lines):
    settings = {"epochs": 30, "learning_rate": 3e-3, "save_steps": 1000}
    results = []
    for name in ("a", "b"):
        task = make_task()
        fit(config(tmp_path / name, **settings), task, random_dataset(48), random_dataset(48))
        results.append(task.weights.state_dict())
    assert float(eval_lines(log_lines)[-1].rsplit(" ", 1)[1]) > 0.9
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_bf16_on_the_cpu_keeps_fp32_weights(tmp_path, log_lines):
    task = make_task()
    fit(config(tmp_path, precision="bf16"), task, random_dataset(16), random_dataset(10))
    assert {tensor.dtype for tensor in task.weights.state_dict().values() if tensor.is_floating_point()} == {
        torch.float32
    }
    assert any("bf16" in line for line in log_lines)
