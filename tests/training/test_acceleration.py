import pytest
import torch

from bertorch.precision import Precision
from bertorch.training.acceleration import accelerate, compiles, graph_obstacle
from bertorch.weights import load_weights
from tests.architectures import random_batch
from tests.short_runs import config, fit
from tests.small_tasks import (
    NO_DROPOUT,
    classification_data,
    classification_task,
    contrastive_task,
    windowed_task,
)

BF16_ON_A_GPU = Precision("bf16", "cuda")


@pytest.mark.parametrize(
    ("options", "precision", "architecture", "obstacle"),
    [
        ({}, BF16_ON_A_GPU, "bert", None),
        ({}, Precision("fp32", "cuda"), "bert", None),
        ({}, Precision("fp16", "cuda"), "bert", "fp16"),
        ({"cuda_graphs": "off"}, BF16_ON_A_GPU, "bert", "--cuda_graphs off"),
        ({"gradient_accumulation_steps": 2}, BF16_ON_A_GPU, "bert", "--gradient_accumulation_steps 2"),
        ({"gradient_checkpointing": True}, BF16_ON_A_GPU, "bert", "activations are recomputed"),
        ({}, BF16_ON_A_GPU, "deberta-v2", "the encoder does not run padding-free"),
    ],
)
def test_what_stands_in_the_way_of_graphs(options, precision, architecture, obstacle, tmp_path):
    settings = config(tmp_path, **options)
    assert graph_obstacle(settings, classification_task(architecture), precision) == obstacle


def test_chunks_of_a_batch_stand_in_the_way_of_graphs(tmp_path):
    for micro_batch_size, obstacle in ((None, None), (4, "activations are recomputed")):
        task = contrastive_task(micro_batch_size=micro_batch_size)
        assert graph_obstacle(config(tmp_path), task, BF16_ON_A_GPU) == obstacle


def test_windows_stand_in_the_way_of_graphs(tmp_path):
    """A batch has any number of them."""
    assert graph_obstacle(config(tmp_path), windowed_task(), BF16_ON_A_GPU) == "--windows 3"


def test_the_cpu_has_no_graphs_and_says_nothing(log_lines, tmp_path):
    chosen = accelerate(config(tmp_path), classification_task(), Precision("fp32", "cpu"), steps=10**6, tokens=1)
    assert chosen is None
    assert log_lines == []


def test_the_log_says_why_there_are_no_graphs(log_lines, tmp_path):
    options = config(tmp_path, cuda_graphs="off")
    chosen = accelerate(options, classification_task(), BF16_ON_A_GPU, steps=10**6, tokens=1)
    assert chosen is None
    assert log_lines == ["CUDA graphs: off, --cuda_graphs off; steps run eagerly"]


@pytest.mark.parametrize(
    ("options", "run", "expected"),
    [
        ({}, (True, 900, 2600), False),  # ChnSentiCorp, three epochs
        ({}, (True, 40_000, 2600), True),
        ({}, (True, 40_000, 200), True),
        ({}, (True, 30_000, 200), False),
        ({}, (False, 10**6, 2600), False),
        ({"deterministic": True}, (True, 10**6, 2600), False),
        ({"compile": "off"}, (True, 10**6, 2600), False),
        ({"compile": "on"}, (False, 1, 1), True),
    ],
)
def test_a_run_is_compiled_if_that_pays(options, run, expected, tmp_path):
    has_graphs, steps, tokens = run
    settings = config(tmp_path, **options)
    assert compiles(settings, has_graphs=has_graphs, steps=steps, tokens=tokens) is expected


@pytest.mark.slow
def test_a_compiled_run_ends_where_an_eager_one_does(monkeypatch, tmp_path):
    """With a backend that only traces: it is fast, and the kernels of the others are not our concern."""
    compiled = []
    whole = torch.nn.Module.compile

    def trace(module, **options):
        compiled.append(options)
        whole(module, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    weights = {}
    for choice in ("off", "on"):
        task = classification_task(**NO_DROPOUT)
        task.model.double()
        fit(
            config(tmp_path / choice, compile=choice, save_steps=3),
            task,
            classification_data(24),
            classification_data(9),
        )
        weights[choice] = load_weights(str(tmp_path / choice))
    assert compiled == [{"dynamic": True}]
    assert weights["on"].keys() == weights["off"].keys()
    for name, tensor in weights["on"].items():
        torch.testing.assert_close(tensor, weights["off"][name], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_a_compiled_encoder_has_dropout(name, monkeypatch):
    """That of PyTorch, which draws other numbers than ours, and can be traced in one piece."""
    whole = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: whole(module, backend="aot_eager", fullgraph=True)
    )
    task = classification_task(**NO_DROPOUT | {name: 0.5})
    task.model.compile_encoders()
    (encoder,) = task.model.encoders
    batch = random_batch([3, 17, 1, 9])
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(encoder(batch))
        results[-1].sum().backward()
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
