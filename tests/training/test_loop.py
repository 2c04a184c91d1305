"""The train loop on one process and on several, in float64 where exactness is shown."""

from functools import partial

import pytest
import torch

from bertorch.errors import UserError
from bertorch.precision import Precision
from bertorch.training import run_folder, run_state
from bertorch.training.eval_loop import evaluate
from bertorch.weights import load_weights
from tests.conftest import run_processes
from tests.short_runs import assert_same_as_one_process, config, fit, trained
from tests.small_tasks import NO_DROPOUT, classification_data, classification_task, pair_data, siamese_task


def eval_lines(lines):
    return [line for line in lines if line.startswith("eval loss")]


@pytest.mark.parametrize(
    ("world_size", "batch_size", "size", "accumulation"),
    [
        pytest.param(2, 4, 21, 1, id="uneven last batch"),
        pytest.param(2, 4, 17, 1, id="a process without examples", marks=pytest.mark.slow),
        pytest.param(3, 4, 26, 2, id="three processes, accumulation", marks=pytest.mark.slow),
        pytest.param(2, 8, 5, 1, id="fewer than a batch", marks=pytest.mark.slow),
    ],
)
def test_several_processes_train_as_one(world_size, batch_size, size, accumulation, tmp_path):
    settings = {
        "batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "weight_decay": 0.01,
        "max_grad_norm": 0.5,
    }
    make_without_dropout = partial(classification_task, **NO_DROPOUT)
    assert_same_as_one_process(tmp_path, world_size, make_without_dropout, classification_data(size), settings)


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_train_on_pairs_as_one(world_size, tmp_path):
    """Two sentences an example, and a last batch with an example for one process only (of two)."""
    assert_same_as_one_process(
        tmp_path, world_size, partial(siamese_task, **NO_DROPOUT), pair_data(), {"batch_size": 4}
    )


def train_on_what_differs(folder) -> None:
    rank = torch.distributed.get_rank()
    later = {"r_drop": 1.0} if rank else {}  # an option that came later, on the second process alone
    for size, settings, name in (
        (8, {"learning_rate": 1e-3 * (1 + rank)}, "--learning_rate"),
        (8, later, "--r_drop"),
        (8 + rank, {}, "number of examples, number of tokens"),
    ):
        expected = f"expected the same options and data on every process, got others than on the first in: {name}"
        with pytest.raises(UserError, match=expected):
            trained(folder, classification_task(), classification_data(size), **settings)
    data, other = folder / "data.txt", folder / "other.txt"
    data.write_text("a\t0")
    other.write_text("a\t1")
    with pytest.raises(UserError, match="than on the first in: content of --train_data_file; start"):
        trained(folder, classification_task(), classification_data(8), train_data_file=str((data, other)[rank]))


def test_several_processes_must_have_the_same_options_and_data(tmp_path):
    """Such as on several machines with copies of their own."""
    run_processes(2, train_on_what_differs, tmp_path)


def train_in_fp16(folder) -> None:
    """Of which a GPU's alone is offered; the scaler is the same."""
    Precision.resolve = classmethod(lambda cls, *_: cls("fp16", "cpu"))  # of this process
    task = classification_task(**NO_DROPOUT)
    start = {name: tensor.clone() for name, tensor in task.model.weights.state_dict().items()}
    trained(folder, task, classification_data(1), batch_size=4)
    assert any(not torch.equal(tensor, start[name]) for name, tensor in task.model.weights.state_dict().items())


def test_a_process_without_an_example_scales_nothing_in_fp16(tmp_path):
    run_processes(2, train_in_fp16, tmp_path)


def evaluate_in_double(folder, batch_size) -> None:
    task = classification_task()
    task.model.double()
    metric = evaluate(task, classification_data(23), batch_size, Precision("fp32", "cpu"))
    (folder / f"{torch.distributed.get_rank()}.txt").write_text(f"{metric.line()} {metric.value!r}")


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_evaluation_does_not_depend_on_processes_or_batch_size(world_size, tmp_path):
    task = classification_task()
    task.model.double()
    metrics = [evaluate(task, classification_data(23), size, Precision("fp32", "cpu")) for size in (1, 7, 32)]
    expected = f"{metrics[0].line()} {metrics[0].value!r}"
    assert [f"{metric.line()} {metric.value!r}" for metric in metrics] == [expected] * 3
    for batch_size in (1, 7, 32):
        run_processes(world_size, evaluate_in_double, tmp_path, batch_size)
        assert [path.read_text() for path in tmp_path.iterdir()] == [expected] * world_size


def test_it_evaluates_and_saves_on_time_and_after_the_last_step(tmp_path, log_lines, monkeypatch):
    saves = []
    publish = run_folder.publish
    monkeypatch.setattr(
        run_folder,
        "publish",
        lambda *arguments, **others: saves.append(len(log_lines)) or publish(*arguments, **others),
    )
    task = classification_task()
    fit(config(tmp_path, save_steps=3, epochs=2), task, classification_data(30), classification_data(10, seed=1))
    steps = [line.split(",")[0] for line in log_lines if line.startswith("global step")]
    assert steps == [f"global step: {step}" for step in (2, 4, 6, 8)]
    assert len(eval_lines(log_lines)) == len(saves) == 3  # steps 3, 6 and the last, 8
    assert log_lines[-1] == f"weights of step 8: {tmp_path}/pytorch_model.bin"
    saved = load_weights(str(tmp_path))
    for name, tensor in task.model.weights.state_dict().items():
        assert torch.equal(saved[name], tensor)


def test_the_batch_number_starts_anew_each_epoch_and_counts_batches(tmp_path, log_lines):
    settings = {"batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1, "epochs": 2}
    fit(config(tmp_path, **settings), classification_task(), classification_data(20), None)
    lines = [line.split(", loss")[0] for line in log_lines if line.startswith("global step")]
    assert lines == [
        f"global step: {step}, epoch: {epoch}, batch: {batch}"
        for step, epoch, batch in [(1, 1, 2), (2, 1, 4), (3, 1, 5), (4, 2, 2), (5, 2, 4), (6, 2, 5)]
    ]


class ScriptedMetric:
    name = "accuracy"

    def __init__(self, value: float) -> None:
        self.value = value

    def numbers(self) -> dict[str, float]:
        return {"accuracy": self.value}

    def line(self) -> str:
        return f"eval: {self.value}"

    def summary(self) -> list[str]:
        return [f"report of {self.value}"]

    def warnings(self) -> list[str]:
        return []


def test_the_best_model_alone_is_saved_on_demand(tmp_path, log_lines, monkeypatch):
    values = iter([0.5, 0.8, 0.6, 0.8])
    kept = []

    def scripted(task, *_):
        kept.append({name: tensor.clone() for name, tensor in task.model.weights.state_dict().items()})
        return ScriptedMetric(next(values))

    monkeypatch.setattr(run_state, "evaluate", scripted)
    settings = {"save_best_model": True, "save_steps": 1, "epochs": 1}
    fit(config(tmp_path, **settings), classification_task(), classification_data(32), classification_data(1))
    assert log_lines[-3:] == [
        "report of 0.8",
        "best dev accuracy: 0.80000 at step 2",
        f"weights of step 2: {tmp_path}/pytorch_model.bin",
    ]
    for name, tensor in load_weights(str(tmp_path)).items():
        assert torch.equal(tensor, kept[1][name])


def test_training_learns_and_the_same_seed_gives_the_same_weights(tmp_path, log_lines):
    settings = {"epochs": 30, "learning_rate": 3e-3, "save_steps": 1000}
    trained = []
    for name in ("a", "b"):
        task = classification_task()
        fit(config(tmp_path / name, **settings), task, classification_data(48), classification_data(48))
        trained.append(task.model.weights.state_dict())
    assert float(eval_lines(log_lines)[-1].rsplit(" ", 1)[1]) > 0.9
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_bf16_on_the_cpu_keeps_fp32_weights(tmp_path, log_lines):
    task = classification_task()
    fit(config(tmp_path, precision="bf16"), task, classification_data(16), classification_data(10))
    assert {tensor.dtype for tensor in task.model.weights.state_dict().values() if tensor.is_floating_point()} == {
        torch.float32
    }
    assert any("bf16" in line for line in log_lines)


def test_an_error_before_the_first_step_leaves_no_folder_behind(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "new" / "inside", tmp_path / "there"):
        with pytest.raises(UserError, match="nowhere"):
            trained(folder, classification_task(), classification_data(8), init_from_ckpt="nowhere.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
