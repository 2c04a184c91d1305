"""Adversarial training, averaged weights, R-Drop, layer-wise rates and frozen layers in one run."""

from functools import partial

import numpy as np
import pytest

from bertorch.errors import InterruptedRunError
from bertorch.tasks.class_losses import ClassLoss
from bertorch.tasks.classification import ClassificationTask
from bertorch.training.loop import build_hooks
from bertorch.weights import load_weights
from tests.short_runs import assert_equal, assert_same_as_one_process, config, stop_after, trained
from tests.small_tasks import (
    DROPOUT,
    NO_DROPOUT,
    entity_data,
    global_pointer_task,
    tagged_data,
    tagging_task,
    windowed_data,
    windowed_task,
)

SHARED = {"ema_decay": 0.9, "r_drop": 2.0, "layer_decay": 0.7, "gradient_accumulation_steps": 2}
MOVED, FROZEN = SHARED | {"adversarial_epsilon": 0.5}, SHARED | {"freeze_layers": 1}


def weighted_windows(**settings: object) -> ClassificationTask:
    loss = ClassLoss(weights=np.array([0.25, 1.5, 4.0]), smoothing=0.1)
    return ClassificationTask(windowed_task(**settings).model, ["a", "b", "c"], windows=3, class_loss=loss)


CASES = {
    "windows, unequal classes": (weighted_windows, partial(windowed_data, 29), MOVED),
    "crf tagger": (partial(tagging_task, use_crf=True), partial(tagged_data, 29), FROZEN),
    "global pointer": (global_pointer_task, partial(entity_data, 29), MOVED | {"r_drop": None}),
    "global pointer, frozen": (global_pointer_task, partial(entity_data, 29), FROZEN | {"r_drop": None}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_stopped_run_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    """Also the weights for use, of the best evaluation."""
    make_task, make_data, tricks = CASES[name]
    settings = tricks | {"save_best_model": True, "gradient_checkpointing": True, "save_steps": 1, "max_steps": 4}

    def run(folder, **more):
        return trained(folder, make_task(**DROPOUT), make_data(), make_data(), **settings, **more)

    expected = run(tmp_path / "whole")
    stop_after(monkeypatch, 2)
    with pytest.raises(InterruptedRunError):
        run(tmp_path / "parts")
    monkeypatch.undo()
    assert_equal(run(tmp_path / "parts", resume=True), expected)
    assert_equal(load_weights(str(tmp_path / "parts")), load_weights(str(tmp_path / "whole")))


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_several_processes(name, tmp_path):
    make_task, make_data, tricks = CASES[name]
    settings = tricks | {"batch_size": 3, "epochs": 1, "max_grad_norm": 0.1, "weight_decay": 0.01}
    assert_same_as_one_process(tmp_path, 2, partial(make_task, **NO_DROPOUT), make_data(), settings)


def test_the_hooks_stand_in_the_order_in_which_they_act(tmp_path):
    """Both passes of adversarial training are R-Drop's, clipping sees their sum, and the average the result."""
    hooks = build_hooks(config(tmp_path, **MOVED), weighted_windows())
    names = [type(hook).__name__ for hook in hooks]
    assert names == ["StopIfNotFinite", "ClipGradients", "RDrop", "FastGradientMethod", "AverageWeights"]
