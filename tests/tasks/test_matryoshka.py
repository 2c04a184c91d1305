"""The loss over several widths against its parts computed apart, and what is told of them."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bertorch import load
from bertorch.errors import UserError
from bertorch.tasks.losses import in_batch_negatives_loss
from bertorch.tasks.matryoshka import all_widths
from bertorch.tasks.metrics import CorrelationMetric
from tests.conftest import SENTENCES
from tests.short_runs import assert_same_as_one_process
from tests.small_tasks import (
    CONTRASTIVE,
    NO_DROPOUT,
    contrastive_data,
    contrastive_task,
    cosent_task,
    pair_data,
    scored_pair_data,
    siamese_task,
)

WIDTHS = (8, 5, 2)
TASKS = {
    "in-batch negatives": (partial(contrastive_task, gather=True), contrastive_data),
    "cosent": (cosent_task, scored_pair_data),
    "sentence-bert": (siamese_task, pair_data),
}


def test_the_whole_width_is_among_them():
    assert all_widths((), 8) == ()
    assert all_widths((2, 5), 8) == all_widths((8, 2, 5), 8) == WIDTHS
    with pytest.raises(UserError, match="--matryoshka: expected at most the 8 dimensions of an embedding, got 9"):
        all_widths((2, 9), 8)


def test_in_batch_negatives_as_the_mean_over_cut_and_normalised_embeddings():
    batch = contrastive_data(6, texts=9).batch(np.arange(6))
    task = contrastive_task(matryoshka=(2, 5), **NO_DROPOUT)
    task.model.double()
    rows = task.model(batch).detach().view(6, 2, 8)
    cut = [torch.stack([row / row.norm() for row in rows[:, :, :width].reshape(-1, width)]) for width in WIDTHS]
    parts = [in_batch_negatives_loss(each.view(6, 2, -1), batch.text_ids, **CONTRASTIVE).item() for each in cut]
    assert task.losses(batch)["loss"].item() == pytest.approx(sum(parts) / 3, rel=1e-12)
    assert len({round(part, 3) for part in parts}) == 3


def test_sentence_bert_classifies_cut_embeddings_with_the_weights_of_their_dimensions():
    batch = pair_data(7).batch(np.arange(7))
    task = siamese_task(matryoshka=(16, 4), **NO_DROPOUT)
    task.model.double()
    pairs, weight, bias = task.model(batch).detach(), task.siamese.classifier.weight, task.siamese.classifier.bias
    size = pairs.shape[-1]
    losses = []
    for width in (size, 16, 4):
        u, v = pairs[:, 0, :width], pairs[:, 1, :width]
        columns = torch.cat([torch.arange(width) + part * size for part in range(4)])
        logits = torch.cat([u, v, (u - v).abs(), u * v], dim=1) @ weight[:, columns].T + bias
        losses.append(F.cross_entropy(logits, batch.labels, reduction="sum").item())
    got = task.losses(batch)
    assert got["loss"].item() == pytest.approx(sum(losses) / 3, rel=1e-12)
    assert got["accuracy"] == siamese_task(**NO_DROPOUT).losses(batch)["accuracy"]  # of the whole embeddings


def gradients(task, batch) -> dict[str, torch.Tensor]:
    task.model.double().zero_grad()
    task.losses(batch)["loss"].backward()
    return {name: weight.grad for name, weight in task.model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", ["in-batch negatives", "cosent"])
def test_chunks_give_the_gradients_of_the_whole_batch(name):
    make_task, make_data = TASKS[name]
    batch = make_data(10).batch(np.arange(10))
    expected = gradients(make_task(matryoshka=(2, 5), **NO_DROPOUT), batch)
    got = gradients(make_task(matryoshka=(2, 5), micro_batch_size=3, **NO_DROPOUT), batch)
    plain = gradients(make_task(**NO_DROPOUT), batch)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(got[parameter], gradient, rtol=0, atol=1e-12, msg=parameter)
    assert any((plain[parameter] - gradient).abs().max() > 1e-3 for parameter, gradient in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_several_processes_train_as_one(name, tmp_path):
    make_task, make_data = TASKS[name]
    make = partial(make_task, matryoshka=(2, 5), **NO_DROPOUT)
    assert_same_as_one_process(tmp_path, 2, make, make_data(17), {"batch_size": 4, "epochs": 2})


def test_the_metric_tells_every_width():
    data, task = scored_pair_data(12), cosent_task(matryoshka=(2, 5), **NO_DROPOUT)
    batch, indices = data.batch(np.arange(12)), np.arange(12)
    with torch.inference_mode():
        outputs = task.model.eval()(batch)
    metric = task.metric(torch.device("cpu"))
    metric.update(outputs, batch, indices)
    metric.reduce()
    expected = {}
    for width in WIDTHS:
        alone = CorrelationMetric(torch.device("cpu"))
        alone.update(outputs[:, :width].clone(), batch, indices)
        alone.reduce()
        expected[str(width)] = alone.numbers()
    report = metric.report()
    assert report["dimensions"] == expected
    assert len({numbers["pearson"] for numbers in expected.values()}) == 3
    assert (metric.value, metric.line()) == (expected["8"]["spearman"], metric.whole.line())
    assert report["spearman"] == metric.value
    assert metric.summary()[-1].startswith("2 dimensions: spearman corr: ")


@pytest.mark.slow
def test_the_folder_knows_its_widths(folders):
    folder = folders["cosent"]
    model, texts = load(folder), SENTENCES.read_text().splitlines()[:5]
    assert json.loads((folder / "config.json").read_text())["bertorch"]["matryoshka"] == [128, 64, 32]
    assert tuple(model.task.embedding_widths) == (128, 64, 32)
    whole, cut = model.encode(texts), model.encode(texts, dimensions=32)
    np.testing.assert_allclose(cut, whole[:, :32] / np.linalg.norm(whole[:, :32], axis=1, keepdims=True), atol=1e-6)
    assert model.encode([], dimensions=32).shape == (0, 32)
    card = (folder / "README.md").read_text()
    assert "encode(['房间干净，早餐也丰富。'], dimensions=32)" in card
    assert "# trained at 128, 64, 32 dimensions\n" in card


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [0, 129])
def test_dimensions_that_an_embedding_does_not_have(dimensions, folders):
    with pytest.raises(UserError, match=f"dimensions: expected 1 to the 128 of an embedding, got {dimensions}"):
        load(folders["cosent"]).encode(["好"], dimensions=dimensions)


@pytest.mark.slow
def test_sentence_transformers_cuts_as_we_do(folders):
    transformers = pytest.importorskip("sentence_transformers")
    texts = SENTENCES.read_text().splitlines()[:5]
    peer = transformers.SentenceTransformer(str(folders["cosent"]), truncate_dim=32, device="cpu")
    theirs = peer.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(load(folders["cosent"]).encode(texts, dimensions=32), theirs, atol=1e-5)


@pytest.mark.parametrize("widths", ["64", ["64"], [0]])
def test_a_folder_with_other_widths_is_refused(widths, folders, tmp_path):
    for path in folders["cosent"].iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["bertorch"]["matryoshka"] = widths
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: bertorch: matryoshka: expected dimensions, got"):
        load(tmp_path)
