from typing import Any

import pytest
import torch

from bertorch.encoder.cpu import OneDnnLinear
from bertorch.precision import Precision
from bertorch.training import eval_loop
from tests import small_tasks
from tests.encoder.test_cpu import HAS_BF16
from tests.small_tasks import classification_task, contrastive_task, pair_data, scored_pair_data, siamese_task

needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="a processor without bf16")


def kinds_in(task):
    modules = (module for encoder in task.model.encoders for module in encoder.modules())
    return {type(module) for module in modules} & {torch.nn.Linear, OneDnnLinear}


@pytest.mark.parametrize("name", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize(("make", "data"), [
    (classification_task, small_tasks.classification_data(17)), (siamese_task, pair_data()),
    (contrastive_task, scored_pair_data(9)),
], ids=["classifier", "siamese", "contrastive"])  # fmt: skip
def test_an_evaluation_on_the_cpu_has_the_linear_layers_of_inference(make, data, name, monkeypatch):
    """Its metric is that of the trained ones, which are in their place again afterwards."""
    task, precision = make(), Precision.resolve(name, torch.device("cpu"))
    seen = []
    metric: Any = eval_loop.evaluate(task, data, 4, precision, watch=lambda *_: seen.append(kinds_in(task)))
    assert seen
    assert all(kinds == {OneDnnLinear} for kinds in seen)
    assert kinds_in(task) == {torch.nn.Linear}
    monkeypatch.setattr(eval_loop, "with_onednn", lambda *_: torch.no_grad())
    expected: Any = eval_loop.evaluate(task, data, 4, precision)
    assert metric.numbers() == pytest.approx(expected.numbers(), abs=1e-5 if name == "fp32" else 0.05)
