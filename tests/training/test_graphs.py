"""Steps as graphs, with a pretended capture on the CPU, whose replay runs the work again on its static memory."""

import gc
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch

from bertorch.data.dataset import Dataset
from bertorch.data.schedule import TrainingSchedule
from bertorch.data.tagged_dataset import TaggedDataset
from bertorch.precision import Precision
from bertorch.training import graphs
from bertorch.training.graphs import CudaCapture
from bertorch.training.hooks import ClipGradients, StopIfNotFinite
from bertorch.training.optimization import build_optimizer, build_scheduler
from bertorch.training.step import OptimizationStep
from tests.conftest import slow_but
from tests.small_tasks import (
    NO_DROPOUT,
    classification_data,
    classification_task,
    contrastive_data,
    contrastive_task,
    cosent_task,
    entity_data,
    global_pointer_task,
    group_data,
    multi_label_data,
    multi_label_task,
    pair_data,
    ranking_task,
    score_data,
    score_task,
    scored_pair_data,
    siamese_task,
    tagged_data,
    tagging_task,
    weighted_task,
)

SIZE = 40
TASKS = {
    "classifier": (classification_task, classification_data),
    "classifier that reads all tokens": (
        partial(classification_task, "modernbert", classifier_pooling="mean", embedding_dropout=0.0),
        classification_data,
    ),
    "several labels": (multi_label_task, multi_label_data),
    "several labels, zlpr": (partial(multi_label_task, "zlpr"), multi_label_data),
    "scores": (score_task, score_data),
    "ranking": (ranking_task, group_data),
    "classifier of unequal classes": (weighted_task, classification_data),
    "sentence-bert": (siamese_task, pair_data),
    "sentence-bert, mean": (partial(siamese_task, "mean"), pair_data),
    "in-batch negatives": (contrastive_task, contrastive_data),
    "cosent": (partial(cosent_task, scale=5.0), scored_pair_data),
    "matryoshka": (partial(contrastive_task, matryoshka=(4, 2)), contrastive_data),
    "tagger": (partial(tagging_task, use_crf=False), tagged_data),
    "tagger with a CRF": (partial(tagging_task, use_crf=True), tagged_data),
    "global pointer": (global_pointer_task, entity_data),
}


def make_step(task, capture, *, precision="fp32", device="cpu", learning_rate=1e-3):
    task.model.to(device).train()
    optimizer = build_optimizer(
        task.model,
        learning_rate=learning_rate,
        weight_decay=0.01,
        head_parameters=task.head_parameters(),
        head_learning_rate=task.head_learning_rate,
    )
    scheduler = build_scheduler("linear", optimizer, warmup_proportion=0.2, total_steps=40)
    resolved = Precision.resolve(precision, torch.device(device))
    return OptimizationStep(
        task.model,
        task.losses,
        optimizer,
        scheduler,
        resolved,
        loss_parts=task.loss_parts,
        hooks=[StopIfNotFinite("folder"), ClipGradients(0.5)],
        capture=capture,
    )


def train(step, dataset: Dataset | TaggedDataset, epochs=3) -> list[list[float]]:
    """Take steps of 8 examples, and one of 4 in the end of each epoch; the sums of each."""
    schedule = TrainingSchedule(len(dataset) - 4, 8, accumulation=1, seed=0)
    sums = []
    for now in schedule.all_steps(epochs * schedule.steps_per_epoch):
        (examples,) = now.batches
        torch.manual_seed(now.number)
        sums.append(step([step.prepared(dataset.batch(examples))], label_count=dataset.label_count(examples)))
    return [item.tolist() for item in sums]


class PretendedCapture:
    """Keeps the work, and counts."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, work):
        self.captured += 1

        def replay():
            self.replayed += 1
            return work()

        return replay


def assert_same_training(task, reference, sums, expected, *, rtol, atol):
    torch.testing.assert_close(torch.tensor(sums), torch.tensor(expected), rtol=rtol, atol=atol)
    others = dict(reference.model.named_parameters())
    for name, parameter in task.model.named_parameters():
        torch.testing.assert_close(parameter, others[name], rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("name", slow_but(["classifier", "in-batch negatives", "tagger with a CRF"], TASKS))
def test_graphs_train_as_eager_steps_do(name):
    make_task, make_dataset = TASKS[name]
    dataset, capture = make_dataset(SIZE), PretendedCapture()
    task, reference = (make_task(**NO_DROPOUT) for _ in range(2))
    for each in (task, reference):
        each.model.double()
    sums = train(make_step(task, capture), dataset)
    expected = train(make_step(reference, None), dataset)
    assert capture.captured >= 2  # with the last batch of an epoch
    assert capture.replayed >= 8
    assert_same_training(task, reference, sums, expected, rtol=1e-7, atol=1e-9)


def test_each_shape_is_captured_once_after_an_eager_step(monkeypatch):
    monkeypatch.setattr("bertorch.training.step.MULTIPLE", 32)
    capture, shapes = PretendedCapture(), []
    step = make_step(classification_task(), capture)
    dataset = classification_data(SIZE)
    schedule = TrainingSchedule(SIZE, 8, accumulation=1, seed=0)
    for now in schedule.all_steps(4 * schedule.steps_per_epoch):
        batch = step.prepared(dataset.batch(now.batches[0]))
        assert len(batch.input_ids) % 32 == 0
        shapes.append((len(batch.input_ids), batch.max_seqlen))
        step([batch], label_count=8)
    later = [shape for place, shape in enumerate(shapes) if shape in shapes[:place]]
    assert len(set(later)) > 1
    assert capture.captured == len(set(later))
    assert capture.replayed == len(later)


def test_a_run_of_many_shapes_keeps_few_graphs(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    capture, task = PretendedCapture(), classification_task()
    train(make_step(task, capture), classification_data(SIZE))
    assert capture.captured == 1


def test_what_cannot_be_captured_runs_eagerly_and_the_log_says_so_once(log_lines):
    def capture(work):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    task, reference = (classification_task(**NO_DROPOUT) for _ in range(2))
    sums = train(make_step(task, capture), classification_data(SIZE))
    expected = train(make_step(reference, None), classification_data(SIZE))
    assert_same_training(task, reference, sums, expected, rtol=1e-4, atol=1e-6)
    lines = [line for line in log_lines if "CUDA graphs" in line]
    assert lines == ["CUDA graphs: off, capture failed: RuntimeError: operation not permitted when stream is capturing"]


def test_batches_of_an_accumulated_step_run_eagerly():
    capture = PretendedCapture()
    step = make_step(classification_task(), capture)
    batches = [step.prepared(classification_data(SIZE).batch(np.arange(start, start + 8))) for start in (0, 8)]
    for _ in range(3):
        step(batches, label_count=16)
    assert capture.captured == 0


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", TASKS)
def test_cuda_graphs_train_as_eager_steps_do(name, precision):
    make_task, make_dataset = TASKS[name]
    dataset = make_dataset(SIZE)
    task, reference = (make_task(**NO_DROPOUT) for _ in range(2))
    with torch.cuda.stream(torch.cuda.Stream()):
        step = make_step(task, CudaCapture(), precision=precision, device="cuda")
        sums = train(step, dataset)
        expected = train(make_step(reference, None, precision=precision, device="cuda"), dataset)
    assert step._graphs.failure is None
    tolerance = 1e-4 if precision == "fp32" else 5e-2
    assert_same_training(task, reference, sums, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.cuda
def test_replays_of_one_batch_draw_new_dropout_and_the_seed_decides_which():
    task = classification_task(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    dataset, losses = classification_data(SIZE), []
    with torch.cuda.stream(torch.cuda.Stream()):
        step = make_step(task, CudaCapture(), precision="bf16", device="cuda", learning_rate=0.0)
        batch = step.prepared(dataset.batch(np.arange(8)))
        for seed in (1, 2, 3, 4, 3, None):  # the first is eager
            if seed is not None:
                torch.manual_seed(seed)
            losses.append(step([batch], label_count=8)[0].item())
    assert step._graphs.failure is None
    assert len(set(losses[:4])) == 4, losses
    assert losses[4] == losses[2], losses
    assert losses[5] not in losses[:5], losses


class FailsOnTheSecondShape:
    """Captures the first shape, and lets the capture of the second fail."""

    def __init__(self, capture):
        self._capture = capture
        self.called = 0

    def __call__(self, work):
        self.called += 1
        return self._capture(work if self.called == 1 else self._in_vain(work))

    def _in_vain(self, work):
        def waits():
            reported = work()
            if not reported.is_cuda:
                raise RuntimeError("not permitted")
            reported.item()  # waits for the device, which capture forbids
            return reported

        return waits


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_after_a_failed_capture_all_shapes_run_eagerly_with_the_dropout_of_their_seeds(device):
    """Also the shape whose graph was captured before."""
    dataset, losses = classification_data(SIZE), {}
    for kind in ("failing", "eager"):
        failing = FailsOnTheSecondShape(CudaCapture() if device == "cuda" else _runs_at_once)
        with on_a_side_stream(device):
            precision = "bf16" if device == "cuda" else "fp32"
            task = classification_task(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
            capture = failing if kind == "failing" else None
            step = make_step(task, capture, precision=precision, device=device, learning_rate=0.0)
            sizes = [8, 8, 8, 4, 4, 8, 8, 4]  # the first capture at the second step, the second one at the fifth
            losses[kind] = []
            for seed, size in enumerate(sizes):
                torch.manual_seed(seed)
                batch = step.prepared(dataset.batch(np.arange(size)))
                losses[kind].append(step([batch], label_count=size)[0].item())
        if kind == "failing":
            assert failing.called == 2, step._graphs.failure
            assert step._graphs.failure is not None
            assert not step._graphs._replays
    # A batch with filler draws other dropout than one without; those of the same seed and shape agree.
    assert np.isfinite(losses["failing"]).all(), losses
    assert len(set(losses["failing"])) == len(sizes), losses


def _runs_at_once(work):
    """A pretended capture that, unlike a real one, runs the work."""
    work()
    return work


def on_a_side_stream(device):
    return torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext()


@pytest.mark.cuda
def test_the_memory_of_failed_graphs_comes_back():
    failing = FailsOnTheSecondShape(CudaCapture())
    with on_a_side_stream("cuda"):
        step = make_step(classification_task(), failing, precision="bf16", device="cuda")
        dataset = classification_data(SIZE)
        for size in (8, 8, 4, 4, 4):
            step([step.prepared(dataset.batch(np.arange(size)))], label_count=size)
    assert failing.called == 2, step._graphs.failure
    del step
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    kept = [segment for segment in torch.cuda.memory_snapshot() if segment["segment_pool_id"] != (0, 0)]
    assert kept == []


def test_eager_steps_and_replays_read_their_rates_from_the_same_tensors(monkeypatch):
    """A double from Python and an fp32 tensor differ in the last bits."""
    rates = []
    update = torch.optim.AdamW.step

    def noting(optimizer, *args, **options):
        rates.append([group["lr"] for group in optimizer.param_groups])
        return update(optimizer, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)

    def capture(work):
        reported = work()  # with the rates that a graph would read
        return lambda: reported

    step = make_step(classification_task(), capture)
    train(step, classification_data(SIZE))
    assert len(rates) >= 4  # eager steps and captures of both shapes
    assert all(one is other for of_step in rates for one, other in zip(of_step, rates[0], strict=True))
    assert all(isinstance(rate, torch.Tensor) for rate in rates[0])
    assert all(isinstance(rate, float) for rate in step.rates)  # what the schedule changes, and the log shows


def test_eager_steps_and_captures_run_under_the_same_state_of_autocast():
    """`torch.compile` would compile again where it differs, in the middle of a capture."""
    states = []
    task = classification_task()
    task.model.register_forward_pre_hook(lambda *_: states.append(torch.is_autocast_cache_enabled()))
    train(make_step(task, PretendedCapture(), precision="bf16"), classification_data(SIZE))
    assert set(states) == {False}


def test_no_garbage_is_collected_during_a_capture():
    with graphs._no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["classifier", "classifier that reads all tokens", "tagger with a CRF"])
def test_compiled_encoders_are_captured_too(name):
    make_task, make_dataset = TASKS[name]
    dataset = make_dataset(SIZE)
    task, reference = (make_task(**NO_DROPOUT) for _ in range(2))
    with on_a_side_stream("cuda"):
        task.model.to("cuda").compile_encoders()
        step = make_step(task, CudaCapture(), precision="bf16", device="cuda")
        sums = train(step, dataset, epochs=4)
        expected = train(make_step(reference, None, precision="bf16", device="cuda"), dataset, epochs=4)
    assert step._graphs.failure is None
    assert len(step._graphs._replays) >= 1
    assert_same_training(task, reference, sums, expected, rtol=5e-2, atol=5e-2)
