"""The task of sequence labelling: several processes as one, learning rates, saved folders, earlier checkpoints."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from bertorch.data.tagged_dataset import TaggedDataset
from bertorch.data.tagged_sentences import TaggedSentences
from bertorch.data.tags import TagSet
from bertorch.errors import UserError
from bertorch.inference.load import load_trained
from bertorch.precision import Precision
from bertorch.tasks.tag_heads import CrfTagger
from bertorch.tasks.tagging import TaggingTask
from bertorch.training.eval_loop import evaluate
from bertorch.training.optimization import build_optimizer
from bertorch.training.saving import publish
from bertorch.weights import warm_start
from tests.conftest import TINY, run_processes, slow_but
from tests.short_runs import assert_same_as_one_process
from tests.small_tasks import (
    NO_DROPOUT,
    TAGS,
    entity_data,
    global_pointer_task,
    tagged_data,
    tagging_task,
    tiny_tagging_task,
)

HEADS = pytest.mark.parametrize("use_crf", [False, True], ids=["linear", "crf"])
TASKS = {
    "linear": (partial(tagging_task, use_crf=False), tagged_data),
    "crf": (partial(tagging_task, use_crf=True), tagged_data),
    "global pointer": (global_pointer_task, entity_data),
}


@pytest.mark.parametrize("name", slow_but(["linear", "crf"], TASKS))
@pytest.mark.parametrize(
    ("world_size", "examples", "settings"),
    [
        pytest.param(2, 17, {"batch_size": 4}, id="a process without sentences"),
        pytest.param(
            *(3, 20, {"batch_size": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}),
            id="three processes, accumulation, clipping",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_several_processes_train_as_one(name, world_size, examples, settings, tmp_path):
    """The mean is over the words of all processes, which have different numbers of them, or over the sentences."""
    make, data = TASKS[name]
    assert_same_as_one_process(tmp_path, world_size, partial(make, **NO_DROPOUT), data(examples), settings)


def evaluated(name: str, batch_size: int) -> str:
    make, data = TASKS[name]
    task = make()
    task.model.double()
    metric = evaluate(task, data(11, windows=2), batch_size, Precision("fp32", "cpu"))
    return "\n".join([metric.line(), *metric.summary()])


def write_evaluation(folder, name, batch_size) -> None:
    (folder / f"{torch.distributed.get_rank()}.txt").write_text(evaluated(name, batch_size))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crf", "global pointer"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_does_not_depend_on_processes_or_batch_size(world_size, name, tmp_path):
    expected = evaluated(name, 32)
    assert evaluated(name, 1) == evaluated(name, 7) == expected
    for batch_size in (1, 7, 32):
        run_processes(world_size, write_evaluation, tmp_path, name, batch_size)
        assert [path.read_text() for path in tmp_path.iterdir()] == [expected] * world_size


def test_the_loss_is_a_mean_over_words():
    data = tagged_data(6)
    assert data.label_count(np.arange(6)) == len(data.tags)
    task = tagging_task(use_crf=False, **NO_DROPOUT)
    whole = task.losses(data.batch(np.arange(6)))["loss"]
    parts = sum(task.losses(data.batch(np.array([number])))["loss"] for number in range(6))
    torch.testing.assert_close(whole, parts)


def test_the_crf_and_the_layer_under_it_have_their_own_rate():
    task = tagging_task(use_crf=True)
    optimizer = build_optimizer(
        task.model,
        learning_rate=1e-4,
        weight_decay=0.1,
        head_parameters=task.head_parameters(),
        head_learning_rate=task.head_learning_rate,
    )
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    names = {name: rates[parameter] for name, parameter in task.model.weights.named_parameters()}
    own = {name for name, rate in names.items() if rate == 1e-2}
    assert own == {name for name in names if name.startswith(("classifier.", "crf."))}
    assert all(rate == 1e-4 for name, rate in names.items() if name not in own)
    assert len(rates) == len(list(task.model.parameters()))


def test_without_a_crf_there_is_one_rate():
    task = tagging_task(use_crf=False)
    assert task.head_learning_rate is None
    assert list(task.head_parameters()) == []


# Saved folders


def save(task: TaggingTask, folder) -> None:
    publish(str(folder), task.model.weights.state_dict(), task.savables)


def batch_of(words: list[str]):
    sentences = TaggedSentences([words], [np.zeros(len(words), dtype=np.int64)])
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return TaggedDataset.of(tokenizer, sentences, max_length=128).batch(np.array([0]))


@HEADS
def test_a_saved_folder_loads_in_transformers_and_gives_our_logits(use_crf, tmp_path):
    task = tiny_tagging_task(use_crf=use_crf)
    save(task, tmp_path)
    words = [*"他在北京大学读书。"]
    model = AutoModelForTokenClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = model(**tokenizer(words, is_split_into_words=True, return_tensors="pt")).logits[0]
        torch.testing.assert_close(task.model(batch_of(words)), logits[1:-1], rtol=0, atol=1e-5)
    assert model.config.id2label == dict(enumerate(TAGS.tags))


@HEADS
def test_a_saved_folder_loads_back_with_one_call(use_crf, tmp_path):
    task = tiny_tagging_task(use_crf=use_crf)
    save(task, tmp_path)
    tagger = load_trained(tmp_path).span_model
    batch = batch_of([*"他在北京大学读书。"])
    with torch.no_grad():
        emissions = tagger(batch)
        assert torch.equal(emissions, task.model(batch))
        assert torch.equal(tagger.decode(emissions, batch).tags, task.model.decode(emissions, batch).tags)
    assert not tagger.training
    assert isinstance(tagger, CrfTagger) == use_crf
    if use_crf:
        assert torch.equal(tagger.crf.transitions, task.model.crf.transitions)


def test_a_loaded_crf_has_the_probabilities_of_training(tmp_path):
    """Of one that obeyed the scheme in training: what it forbids got no gradient there, and would have most of them."""
    tags = TagSet(["O", "B-PER", "I-PER"], "bio", "labels.txt")
    tokenizer, options = AutoTokenizer.from_pretrained(TINY), {"head_learning_rate": 1e-3, "max_seq_length": 128}
    batch = batch_of([*"他在北京大学读书。"])
    for constrained in (False, True):
        task = TaggingTask.from_pretrained(
            str(TINY), tokenizer, tags, head="crf", constrain_training=constrained, **options
        )
        torch.nn.init.constant_(task.span_model.crf.start_transitions[2:], 5.0)  # of I-, which no sentence begins with
        (folder := tmp_path / str(constrained)).mkdir()
        save(task, folder)
        loaded = load_trained(folder).span_model
        with torch.no_grad():
            expected, marginals = (
                model.marginals(model(batch), batch) for model in (task.span_model.eval(), loaded)
            )  # (K, C) each
        torch.testing.assert_close(marginals, expected, rtol=0, atol=1e-6)
        assert (marginals[0, 2].item() > 0.5) != constrained
    assert marginals[0, 2].item() < 1e-6


def test_a_folder_of_another_script_is_refused():
    with pytest.raises(UserError, match="expected a folder saved by bertorch or sentence-transformers"):
        load_trained(TINY)


@HEADS
def test_weights_of_the_earlier_bertorch(use_crf, tmp_path, log_lines):
    """It called the encoder `encoder` and had one label more, [PAD], the last."""
    torch.manual_seed(7)
    task = tagging_task(use_crf=use_crf)
    expected = {name: torch.randn_like(tensor) for name, tensor in task.model.weights.state_dict().items()}
    earlier = {}
    for name, tensor in expected.items():
        if name.startswith(("classifier", "crf")):  # one more in every dimension that counts labels
            shape = [size + 1 if size == len(TAGS) else size for size in tensor.shape]
            padded = torch.full(shape, 99.0)
            padded[tuple(map(slice, tensor.shape))] = tensor
            tensor = padded  # noqa: PLW2901
        earlier[name.replace("bert.", "encoder.", 1)] = tensor
    torch.save(earlier, tmp_path / "pytorch_model.bin")
    warm_start(task.model.weights, str(tmp_path), "bert", convert=task.convert_legacy_weights)
    for name, tensor in task.model.weights.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert any("skipped the last label of the earlier bertorch, [PAD], in classifier" in line for line in log_lines)
    assert not any("missing" in line or "unexpected" in line for line in log_lines)


def test_other_weights_with_one_label_more_are_an_error(tmp_path):
    task = tagging_task(use_crf=False)
    weights = task.model.weights.state_dict() | {"classifier.bias": torch.zeros(len(TAGS) + 1)}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"classifier.bias: expected \(5,\), got \(6,\)"):
        warm_start(task.model.weights, str(tmp_path), "bert", convert=task.convert_legacy_weights)
