"""The contrastive task: negatives of all processes, gradient caching, the two views of SimCSE."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from bertorch.config import ContrastiveConfig
from bertorch.data.dataset import TextRows
from bertorch.data.several_files import SeveralFiles
from bertorch.tasks.base import Negatives
from bertorch.tasks.contrastive import encode_in_chunks
from bertorch.tasks.in_batch_negatives import InBatchNegatives
from bertorch.tasks.losses import in_batch_negatives_loss
from bertorch.tasks.metrics import CorrelationMetric
from tests.architectures import random_store
from tests.short_runs import assert_same_as_one_process
from tests.small_tasks import CONTRASTIVE, NO_DROPOUT, contrastive_data, contrastive_task, own_positives


@pytest.mark.parametrize(
    ("world_size", "batch_size", "train", "settings"),
    [
        pytest.param(2, 4, contrastive_data(21), {}, id="uneven last batch", marks=pytest.mark.slow),
        pytest.param(2, 4, contrastive_data(17), {}, id="a process without rows", marks=pytest.mark.slow),
        pytest.param(
            *(3, 3, contrastive_data(20, width=4, texts=30), {"gradient_accumulation_steps": 2}),
            id="three processes, hard negatives, duplicates, accumulation",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(2, 4, contrastive_data(21, texts=12), {"micro_batch_size": 2}),
            id="uneven last batch, duplicates, gradient caching",
        ),
        pytest.param(
            *(2, 8, contrastive_data(5, texts=4), {"keep_duplicates": True}),
            id="fewer than a batch, duplicates kept",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            3, 4, own_positives(20), {}, id="three processes, each sentence its own positive", marks=pytest.mark.slow
        ),
    ],
)
def test_gathered_negatives_make_several_processes_train_as_one(world_size, batch_size, train, settings, tmp_path):
    of_task = {key: settings[key] for key in ("micro_batch_size", "keep_duplicates") if key in settings}
    of_run = {key: value for key, value in settings.items() if key not in of_task}
    make = partial(contrastive_task, gather=True, **of_task, **NO_DROPOUT)
    assert_same_as_one_process(tmp_path, world_size, make, train, {"batch_size": batch_size, "epochs": 2} | of_run)


def gradients(task, batch) -> dict[str, torch.Tensor]:
    task.model.zero_grad()
    task.losses(batch)["loss"].backward()
    return {name: parameter.grad for name, parameter in task.model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 100])
def test_gradient_caching_gives_the_gradients_of_the_whole_batch(micro_batch_size, dtype):
    batch = contrastive_data(10, width=3, texts=20).batch(np.arange(10))
    whole = contrastive_task(pooling_mode="linear", **NO_DROPOUT)
    chunked = contrastive_task(pooling_mode="linear", micro_batch_size=micro_batch_size, **NO_DROPOUT)
    whole.model.to(dtype)
    chunked.model.to(dtype)
    expected = gradients(whole, batch)
    got = gradients(chunked, batch)
    assert got.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    tolerance = largest * (1e-6 if dtype == torch.float32 else 1e-14)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_gradient_caching_draws_the_same_dropout_in_both_passes(device):
    """As if the activations of all chunks had been kept, which is what plain concatenation does."""
    task = contrastive_task(micro_batch_size=3)
    task.model.to(device)
    batch = contrastive_data(10).batch(np.arange(10)).to(torch.device(device))
    torch.manual_seed(5)
    got = gradients(task, batch)

    task.model.zero_grad()
    torch.manual_seed(5)
    kept = torch.cat([task.model(chunk) for chunk in batch.split(6)])
    in_batch_negatives_loss(kept.view(10, 2, -1), batch.text_ids, **CONTRASTIVE).backward()
    expected = {name: task.model.get_parameter(name).grad for name in got}
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-6 * largest, msg=name)

    torch.manual_seed(6)
    other = gradients(task, batch)
    assert any((other[name] - gradient).abs().max() > 1e-3 for name, gradient in got.items())


def test_the_first_pass_of_gradient_caching_keeps_no_activations():
    """Counted as the bytes that autograd holds for the backward pass."""
    batch = contrastive_data(32).batch(np.arange(32))
    task = contrastive_task(**NO_DROPOUT)

    def held(sentences: int | None) -> int:
        saved = 0

        def pack(tensor):
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encode_in_chunks(task.model, batch, sentences)
        return saved

    assert held(8) < held(None) / 20


def test_the_first_pass_and_the_second_see_the_same_chunks(monkeypatch):
    task = contrastive_task(micro_batch_size=4)
    seen = []
    forward = task.model.forward
    monkeypatch.setattr(task.model, "forward", lambda batch: seen.append(batch.input_ids.tolist()) or forward(batch))
    data = contrastive_data(10)
    task.losses(data.batch(np.arange(10)))["loss"].backward()
    chunks = [data.batch(np.arange(start, end)).input_ids.tolist() for start, end in pairwise([0, 4, 8, 10])]
    assert seen == [*chunks, *reversed(chunks)]


@pytest.mark.parametrize("dropout", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_the_two_views_of_a_sentence_differ_in_training(dropout):
    """Each kind of dropout alone makes them differ; without any they are the same."""
    sentences = np.repeat(np.arange(6)[:, None], 2, axis=1)
    batch = TextRows(random_store(6), sentences).batch(np.arange(6))
    model = contrastive_task(**(NO_DROPOUT | {dropout: 0.1})).model
    first, second = model.train()(batch).view(6, 2, -1).unbind(1)
    assert ((first - second).abs().amax(dim=1) > 1e-4).all()
    first, second = model.eval()(batch).view(6, 2, -1).unbind(1)
    torch.testing.assert_close(first, second)


def test_duplicates_by_text_not_by_embedding():
    """Under dropout equal texts have different embeddings; they are found by their numbers all the same."""
    sentences = np.array([[0, 1], [2, 3], [0, 4]])
    batch = TextRows(random_store(5), sentences).batch(np.arange(3))
    losses = []
    for keep_duplicates in (False, True):
        task = contrastive_task(keep_duplicates=keep_duplicates)
        torch.manual_seed(0)
        losses.append(task.losses(batch)["loss"].item())
    assert losses[0] < losses[1] - 0.1


def test_the_task_joins_processes_only_for_their_negatives():
    assert contrastive_task(gather=True).negatives is Negatives.GLOBAL
    assert contrastive_task().negatives is Negatives.LOCAL
    assert contrastive_task().loss_parts == ("loss",)
    assert isinstance(contrastive_task().metric(torch.device("cpu")), CorrelationMetric)


@pytest.mark.parametrize(
    ("rows", "texts", "settings", "warned"),
    [
        (5, 2, {"batch_size": 1}, True),
        (1, 2, {}, True),
        (5, 2, {"batch_size": 1, "gather_negatives": True}, True),  # of one process
        (5, 3, {"batch_size": 1}, False),  # each row has a hard negative
        (5, 2, {"batch_size": 2}, False),
    ],
)
def test_a_batch_without_negatives_is_said(rows, texts, settings, warned, log_lines):
    train = TextRows(random_store(rows * texts), np.arange(rows * texts).reshape(rows, texts))
    config = ContrastiveConfig(train_data_file="-", **settings)
    InBatchNegatives.of(config).look_at(config, train)
    assert any("a batch of one row has no negatives" in line for line in log_lines) is warned


@pytest.mark.parametrize(("rows", "warned"), [(1, True), (2, False)])
def test_a_file_of_one_row_has_no_negatives(rows, warned, log_lines):
    """Whatever the other files have."""
    train = SeveralFiles("ab", [contrastive_data(9), contrastive_data(rows)], "proportional")
    config = ContrastiveConfig(train_data_file="-")
    InBatchNegatives.of(config).look_at(config, train)
    assert any("a batch of one row has no negatives" in line for line in log_lines) is warned
