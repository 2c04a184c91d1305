"""Ensembles against plain loops over their members, and the metric of parts against that of the whole."""

from typing import Any

import numpy as np
import pytest
import torch

from bertorch.data.dataset import Subset
from bertorch.errors import UserError
from bertorch.precision import Precision
from bertorch.tasks.calibration import Temperature
from bertorch.tasks.ensembles import joined, mean_probabilities
from bertorch.tasks.fitting import FittedFile
from bertorch.training.eval_loop import evaluate
from tests import small_tasks
from tests.small_tasks import NO_DROPOUT

FP32 = Precision.resolve("fp32", torch.device("cpu"))
MAKE = {
    "classification": (small_tasks.classification_task, small_tasks.classification_data(13)),
    "windows": (small_tasks.windowed_task, small_tasks.windowed_data(13)),
    "siamese": (small_tasks.siamese_task, small_tasks.pair_data(13)),
    "tagging": (lambda **s: small_tasks.tagging_task(use_crf=False, **s), small_tasks.tagged_data(9, 2)),
    "crf": (lambda **s: small_tasks.tagging_task(use_crf=True, **s), small_tasks.tagged_data(9, 2)),
}


def members_of(kind: str, count: int = 3) -> list[Any]:
    """Tasks whose weights differ."""
    tasks: list[Any] = [MAKE[kind][0](**NO_DROPOUT) for _ in range(count)]
    for seed, task in enumerate(tasks):
        generator = torch.Generator().manual_seed(seed)
        task.model.eval()
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return tasks


@pytest.mark.parametrize("kind", ["classification", "windows", "siamese"])
def test_probabilities_are_the_mean(kind):
    members, data = members_of(kind), MAKE[kind][1]
    batch = data.batch(np.arange(len(data)))
    ensemble = joined(members, ["a", "b", "c"])
    with torch.no_grad():
        expected = sum(member._scores(batch) for member in members) / 3  # (examples, C), siamese with the cosine
        torch.testing.assert_close(ensemble._scores(batch), expected, rtol=0, atol=1e-6)
        probabilities = ensemble.label_probabilities(ensemble.outputs(batch), batch)
    assert (expected[0] - members[0]._scores(batch)[0]).abs().max() > 1e-3  # they do differ
    classes = expected[:, :3]
    torch.testing.assert_close(probabilities, classes, rtol=0, atol=1e-6)
    metric: Any = evaluate(ensemble, data, 4, FP32)
    losses = -classes[torch.arange(len(data)), torch.from_numpy(data.labels)].log()
    np.testing.assert_allclose(metric.losses, losses, rtol=1e-4)
    np.testing.assert_array_equal(metric.predicted, classes.argmax(dim=1))


@pytest.mark.parametrize("kind", ["classification", "siamese"])
def test_members_keep_their_temperatures(kind):
    members, data = members_of(kind), MAKE[kind][1]
    for member, value in zip(members[1:], (0.5, 3.0), strict=True):
        member.temperature = Temperature(value, FittedFile(f"digest of {value}", f"{value}.txt"))
    ensemble: Any = joined(members, ["a", "b", "c"])
    batch = data.batch(np.arange(len(data)))
    with torch.no_grad():
        expected = sum(member._scores(batch) for member in members) / 3  # (examples, C), siamese with the cosine
        torch.testing.assert_close(ensemble._scores(batch), expected, rtol=0, atol=1e-6)
    assert ensemble.fitted_notes()[0].endswith("each with a temperature of its own, fitted on 0.5.txt")
    ensemble._file = FittedFile("digest of 3.0", "again.txt")
    assert ensemble.is_fitted_here
    assert not joined(members_of(kind), ["a", "b", "c"]).fitted_notes()


def test_probabilities_that_round_to_zero_have_a_logarithm():
    logits = torch.tensor([[0.0, -200.0]]), torch.tensor([[0.0, -300.0]])
    mean = mean_probabilities([each.log_softmax(-1) for each in logits])
    torch.testing.assert_close(mean, torch.tensor([[0.0, -200.0 - np.log(2)]], dtype=torch.float32))


@pytest.mark.parametrize("kind", ["tagging", "crf"])
def test_one_member_tags_as_it_does(kind):
    (member,), data = members_of(kind, 1), MAKE[kind][1]
    expected: Any = evaluate(member, data, 4, FP32)
    metric: Any = evaluate(joined([member], ["a"]), data, 4, FP32)
    assert (metric.predicted, metric.gold, metric.loss) == (expected.predicted, expected.gold, expected.loss)
    assert metric.predicted


@pytest.mark.parametrize("kind", MAKE)
def test_the_metric_of_parts_is_that_of_the_whole(kind):
    (task,), data = members_of(kind, 1), MAKE[kind][1]
    whole: Any = evaluate(task, data, 4, FP32)
    order = np.random.default_rng(0).permutation(len(data))
    parts = [np.sort(order[:4]), np.sort(order[4:5]), np.sort(order[5:])]
    merged: Any = task.metric(torch.device("cpu"))
    merged.merge([evaluate(task, Subset(data, part), 2, FP32) for part in parts], parts)
    assert merged.value == whole.value
    assert merged.numbers() == pytest.approx(whole.numbers(), abs=1e-6)
    ours, theirs = merged.example_table(), whole.example_table()
    assert ours.columns["gold"] == theirs.columns["gold"]
    assert ours.columns["predicted"] == theirs.columns["predicted"]
    assert merged.report().keys() == whole.report().keys()


def test_only_equals_are_joined():
    first, second = members_of("classification", 2)
    second.label_names = ["a", "c", "b"]
    with pytest.raises(UserError, match="y: expected a model of the same task, head and labels as in x"):
        joined([first, second], ["x", "y"])
    pointers = [small_tasks.global_pointer_task() for _ in range(2)]
    with pytest.raises(UserError, match=r"x: expected taggers with a tag for each word .* global_pointer; .* x, y"):
        joined(pointers, ["x", "y"])
    with pytest.raises(UserError, match=r"x: expected a task of classification, .* got score"):
        joined([small_tasks.score_task()], ["x"])
