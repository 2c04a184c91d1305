"""Runs with layer-wise decay of the rate, and with frozen layers."""

import json
import re
from functools import partial

import pytest
import torch

from bertorch.errors import InterruptedRunError, UserError
from bertorch.training.optimization import build_optimizer
from tests.short_runs import assert_equal, assert_same_as_one_process, config, fit, stop_after, trained
from tests.small_tasks import (
    DROPOUT,
    NO_DROPOUT,
    classification_data,
    classification_task,
    entity_data,
    global_pointer_task,
    tagged_data,
    tagging_task,
)

RATE, HEAD_RATE, DECAY, LAYERS = 1e-3, 1e-2, 0.5, 2


def expected_factor(name: str) -> float:
    """rate·d^(L+1−i) in layer i of L, d^(L+1) in the embeddings, 1 in pooler and head."""
    if "embeddings" in name:
        return DECAY ** (LAYERS + 1)
    layer = re.search(r"encoder\.layer\.(\d+)\.", name)
    return DECAY ** (LAYERS + 1 - (int(layer.group(1)) + 1)) if layer else 1.0


def built(task, **settings):
    return build_optimizer(
        task.model,
        learning_rate=RATE,
        weight_decay=0.01,
        head_parameters=task.head_parameters(),
        head_learning_rate=task.head_learning_rate,
        **settings,
    )


@pytest.mark.parametrize("use_crf", [False, True])
def test_the_rate_of_each_parameter(use_crf):
    """The head of a CRF keeps its own."""
    task = tagging_task(use_crf=use_crf)
    optimizer = built(task, rate_factors=task.model.rate_factors(DECAY))
    head = set(task.head_parameters())
    groups = {each: group for group in optimizer.param_groups for each in group["params"]}
    parameters = dict(task.model.named_parameters())
    assert groups.keys() == set(parameters.values())
    assert bool(head) == use_crf
    for name, parameter in parameters.items():
        expected = HEAD_RATE if parameter in head else RATE * expected_factor(name)
        assert groups[parameter]["lr"] == pytest.approx(expected, rel=1e-12), name
        assert groups[parameter]["weight_decay"] == (0.01 if parameter.ndim >= 2 else 0.0), name
    rates = [group["lr"] for group in optimizer.param_groups if group["params"][0] not in head]
    assert rates == sorted(rates, reverse=True)


def test_a_step_moves_each_layer_by_its_rate(tmp_path):
    """The first step of AdamW is the rate times what does not depend on it."""
    moved = []
    for decay in (None, DECAY):
        task = classification_task(**NO_DROPOUT)
        task.model.double()
        start = {name: each.detach().clone() for name, each in task.model.model.named_parameters()}
        settings = {"max_steps": 1, "layer_decay": decay, "scheduler": "constant"}
        trained(tmp_path / str(decay), task, classification_data(8), **settings)
        moved.append({name: each.detach() - start[name] for name, each in task.model.model.named_parameters()})
    for name, expected in moved[0].items():
        assert expected.abs().max() > 1e-6 or name.endswith("key.bias"), name
        torch.testing.assert_close(moved[1][name], expected * expected_factor(name), rtol=1e-6, atol=1e-12, msg=name)


@pytest.mark.parametrize("use_crf", [False, True])
def test_the_log_has_the_peak_rate(use_crf, tmp_path, log_lines):
    settings = {"scheduler": "linear", "logging_steps": 1, "epochs": 1, "layer_decay": DECAY}
    trained(tmp_path, tagging_task(use_crf=use_crf), tagged_data(24), **settings)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "rate" in line]
    assert [line["rate"] for line in steps] == pytest.approx([RATE, RATE * 2 / 3, RATE / 3], rel=1e-12)
    head = [line.get("head_rate") for line in steps]
    assert head == (pytest.approx([HEAD_RATE, HEAD_RATE * 2 / 3, HEAD_RATE / 3]) if use_crf else [None] * 3)


def test_a_frozen_encoder_has_no_rate(tmp_path):
    task = tagging_task(use_crf=True)
    layers = task.model.config.num_hidden_layers
    trained(tmp_path, task, tagged_data(24), scheduler="linear", logging_steps=1, epochs=1, freeze_layers=layers)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["head_rate"] for line in steps] == pytest.approx([HEAD_RATE, HEAD_RATE * 2 / 3, HEAD_RATE / 3])
    assert not any("rate" in line for line in steps)


def test_a_decay_whose_power_is_zero_leaves_the_embeddings_as_they_are(tmp_path, log_lines):
    weights = trained(tmp_path, classification_task(), classification_data(8), layer_decay=1e-120, logging_steps=1)
    start = classification_task().model.weights.state_dict()
    for name, tensor in weights.items():
        assert torch.equal(tensor, start[name]) or not name.startswith("bert.embeddings."), name
    assert not torch.equal(weights["classifier.weight"], start["classifier.weight"])
    rates = [json.loads(line).get("rate") for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates[0] == RATE


def test_a_decay_of_one_is_none(tmp_path):
    runs = [
        trained(tmp_path / str(decay), classification_task(**DROPOUT), classification_data(20), layer_decay=decay)
        for decay in (None, 1.0)
    ]
    assert_equal(*runs)


SETTINGS = {"layer_decay": 0.7, "freeze_layers": 1}


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    def run(folder, **settings):
        return trained(folder, classification_task(**DROPOUT), classification_data(29), **(SETTINGS | settings))

    expected = run(tmp_path / "whole")
    stop_after(monkeypatch, 5)
    with pytest.raises(InterruptedRunError):
        run(tmp_path / "parts")
    monkeypatch.undo()
    assert_equal(run(tmp_path / "parts", resume=True), expected)
    start = classification_task().model.weights.state_dict()
    for name, tensor in expected.items():
        frozen = "embeddings" in name or "layer.0." in name
        assert torch.equal(tensor, start[name]) == frozen or name.endswith("key.bias"), name
    for changed in ({"freeze_layers": 0}, {"freeze_layers": None}, {"layer_decay": None}):
        with pytest.raises(UserError, match=f"--{next(iter(changed))}: .* there, .* now"):
            run(tmp_path / "parts", resume=True, **changed)


def test_freezing_the_embeddings_alone_is_not_the_same_as_nothing(tmp_path):
    trained(tmp_path, classification_task(), classification_data(20), freeze_layers=0)
    with pytest.raises(UserError, match=r"--freeze_layers: 0 there, None now"):
        fit(config(tmp_path, resume=True), classification_task(), classification_data(20))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make_task", "train"),
    [(partial(tagging_task, use_crf=True), tagged_data(21)), (global_pointer_task, entity_data(21))],
    ids=["crf", "global pointer"],
)
def test_several_processes(make_task, train, tmp_path):
    settings = {"batch_size": 4, "epochs": 1, "max_grad_norm": 0.1, "weight_decay": 0.01, **SETTINGS}
    assert_same_as_one_process(tmp_path, 2, partial(make_task, **NO_DROPOUT), train, settings)


@pytest.mark.parametrize("setting", [{"freeze_layers": 3}, {"freeze_layers": 1}, {"layer_decay": 0.5}])
def test_a_model_that_does_not_suit_leaves_no_trace(setting, tmp_path):
    task = classification_task() if setting == {"freeze_layers": 3} else classification_task("albert")
    with pytest.raises(UserError, match="^--(freeze_layers|layer_decay) "):
        fit(config(tmp_path / "run", **setting), task, classification_data(9))
    assert not any((tmp_path / "run").glob("*"))


def test_with_recomputed_activations(tmp_path):
    runs = [
        trained(
            tmp_path / str(recomputes),
            classification_task(**DROPOUT),
            classification_data(20),
            freeze_layers=1,
            gradient_checkpointing=recomputes,
        )
        for recomputes in (False, True)
    ]
    assert_equal(*runs)
