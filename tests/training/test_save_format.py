"""Weights as `pytorch_model.bin`, as `model.safetensors`, or as both."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from bertorch.errors import InterruptedRunError
from bertorch.weights import SAFE_WEIGHTS, WEIGHTS, WEIGHTS_FILES, load_weights
from tests.short_runs import assert_equal, config, fit, stop_after
from tests.small_tasks import NO_DROPOUT, classification_data, classification_task


def saved(folder) -> set[str]:
    return {name for name in (WEIGHTS, SAFE_WEIGHTS) if (folder / name).exists()}


@pytest.mark.parametrize("save_format", WEIGHTS_FILES)
def test_the_files_have_the_weights_and_open_elsewhere(save_format, tmp_path, log_lines):
    task = classification_task(**NO_DROPOUT)
    fit(config(tmp_path, save_format=save_format), task, classification_data(20))
    assert saved(tmp_path) == {*WEIGHTS_FILES[save_format]}
    expected = task.model.weights.state_dict()
    for name in saved(tmp_path):
        file = tmp_path / name
        assert_equal(load_file(file) if name == SAFE_WEIGHTS else torch.load(file), expected)
    assert any(f"weights of step 6: {tmp_path}/{WEIGHTS_FILES[save_format][-1]}" in line for line in log_lines)
    assert_equal(load_weights(str(tmp_path)), expected)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert_equal(theirs.state_dict(), expected)


@pytest.mark.parametrize(("before", "after"), [("bin", "safetensors"), ("safetensors", "bin"), ("both", "bin")])
def test_a_run_that_goes_on_with_another_leaves_no_older_weights(before, after, tmp_path, monkeypatch):
    """It is the same run, since nothing that it computes is another."""
    train = classification_data(40)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(InterruptedRunError):
            fit(config(tmp_path, save_format=before), classification_task(**NO_DROPOUT), train)
    assert saved(tmp_path) == {*WEIGHTS_FILES[before]}
    task = classification_task(**NO_DROPOUT)
    fit(config(tmp_path, save_format=after), task, train)
    assert saved(tmp_path) == {*WEIGHTS_FILES[after]}
    whole = classification_task(**NO_DROPOUT)
    (tmp_path / "whole").mkdir()
    fit(config(tmp_path / "whole"), whole, train)
    assert_equal(load_weights(str(tmp_path)), whole.model.weights.state_dict())


def test_a_complete_run_names_the_file_that_is_there(tmp_path, log_lines):
    train = classification_data(20)
    for settings in ({}, {"save_format": "safetensors", "resume": True}):
        fit(config(tmp_path, **settings), classification_task(**NO_DROPOUT), train)
        assert log_lines[-1] == f"weights of step 6: {tmp_path}/{WEIGHTS}"


def test_another_run_replaces_them(tmp_path, log_lines):
    train = classification_data(20)
    fit(config(tmp_path, save_format="safetensors"), classification_task(**NO_DROPOUT), train)
    fit(config(tmp_path, learning_rate=2e-3, overwrite=True), classification_task(**NO_DROPOUT), train)
    assert saved(tmp_path) == {WEIGHTS}
    assert any(
        f"{SAFE_WEIGHTS} is from an earlier run; the first save of this one replaces" in line for line in log_lines
    )
