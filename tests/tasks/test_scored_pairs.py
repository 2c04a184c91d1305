"""The losses that learn from the scores of pairs, against plain Python loops, on one process and several."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from bertorch.config import BatchNegConfig
from bertorch.data.dataset import Dataset
from bertorch.data.prompts import NO_PROMPTS
from bertorch.data.several_files import SeveralFiles
from bertorch.errors import UserError
from bertorch.precision import Precision
from bertorch.tasks.base import Negatives
from bertorch.tasks.contrastive import LOSSES
from bertorch.tasks.cosent import CoSENT, cosent_loss
from bertorch.tasks.cosine_mse import CosineMSE
from bertorch.tasks.scored_pairs import scored_pairs
from bertorch.training.optimization import build_optimizer, build_scheduler
from bertorch.training.step import OptimizationStep
from tests.architectures import random_store
from tests.conftest import TINY
from tests.short_runs import assert_same_as_one_process
from tests.small_tasks import NO_DROPOUT, cosent_task, embedding_task, scored_pair_data

COSINES = [0.91, 0.13, -0.4, 0.13, 0.77, -0.95]
SCORES = {
    "all differ": [1.0, 2.0, 5.0, 3.0, 4.0, 0.5],
    "ties": [1.0, 2.0, 2.0, 1.0, 0.0, 2.0],
    "0 and 1": [1.0, 0.0, 0.0, 1.0, 1.0, 0.0],
    "hardly different": [1.0, 1.0 + 1e-12, 1.0, 1.0, 1.0 - 1e-12, 1.0],
    "one pair": [2.0],
}
SCALE, DOUBLE = 20.0, torch.float64
TASKS = {
    "cosent": cosent_task,
    "cosine_mse": partial(embedding_task, CosineMSE((0.0, 1.5))),
}


def expected_cosent(cosines: list[float], scores: list[float]) -> float:
    total = 1.0
    for cos_k, y_k in zip(cosines, scores, strict=True):
        for cos_l, y_l in zip(cosines, scores, strict=True):
            if y_k < y_l:
                total += math.exp(SCALE * (cos_k - cos_l))
    return math.log(total)


@pytest.mark.parametrize("name", SCORES)
def test_cosent_as_two_loops(name):
    cosines, scores = COSINES[: len(SCORES[name])], SCORES[name]
    loss = cosent_loss(torch.tensor(cosines, dtype=DOUBLE), torch.tensor(scores, dtype=DOUBLE), scale=SCALE)
    assert loss.item() == pytest.approx(expected_cosent(cosines, scores), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", SCORES)
def test_the_gradient_of_cosent_as_differences(name):
    cosines = torch.tensor(COSINES[: len(SCORES[name])], dtype=DOUBLE, requires_grad=True)
    scores = torch.tensor(SCORES[name], dtype=DOUBLE)
    assert torch.autograd.gradcheck(lambda given: cosent_loss(given, scores, scale=SCALE), cosines)


def test_scores_that_are_all_equal_give_no_gradient():
    cosines = torch.tensor(COSINES, requires_grad=True)
    loss = cosent_loss(cosines, torch.full((6,), 2.5, dtype=DOUBLE), scale=SCALE)
    loss.backward()
    assert loss.item() == 0
    assert cosines.grad.tolist() == [0.0] * 6


def test_cosent_does_not_overflow_in_fp32():
    cosines = torch.tensor([1.0, -1.0], requires_grad=True)
    loss = cosent_loss(cosines, torch.tensor([0.0, 1.0]), scale=1e4)  # exp(20000)
    loss.backward()
    assert (loss.item(), cosines.grad.tolist()) == (20000.0, [1e4, -1e4])
    assert cosent_loss(torch.tensor([-1.0, 1.0]), torch.tensor([0.0, 1.0]), scale=1e4).item() == 0


def test_cosent_never_waits_for_the_device():
    """On `meta` nothing can be looked at: not whether all scores are equal."""
    cosines = torch.zeros(6, device="meta", requires_grad=True)
    cosent_loss(cosines, torch.zeros(6, device="meta"), scale=SCALE).backward()
    assert cosines.grad.shape == (6,)


def random_embeddings(pairs: int) -> torch.Tensor:
    return torch.randn(2 * pairs, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def cosines_of(embeddings: torch.Tensor) -> list[float]:
    rows = embeddings.tolist()
    return [
        sum(map(math.prod, zip(u, v, strict=True))) / math.hypot(*u) / math.hypot(*v)
        for u, v in zip(rows[::2], rows[1::2], strict=True)
    ]


def test_losses_of_embeddings_as_loops():
    data, embeddings = scored_pair_data(9), random_embeddings(9)
    batch, cosines, scores = data.batch(np.arange(9)), cosines_of(embeddings), data.labels.tolist()
    assert len(set(scores)) == 3
    assert CoSENT(scale=SCALE)(embeddings, batch).item() == pytest.approx(expected_cosent(cosines, scores), rel=1e-12)
    squares = sum((cosine - (score - -1) / (1.5 - -1)) ** 2 for cosine, score in zip(cosines, scores, strict=True))
    assert CosineMSE((-1.0, 1.5))(embeddings, batch).item() == pytest.approx(squares, rel=1e-12)


@pytest.mark.parametrize("loss", [CoSENT(scale=SCALE), CosineMSE((0.0, 1.5))], ids=lambda loss: loss.name)
def test_half_precision_around_the_loss_is_fp32_in_it(loss):
    batch, embeddings = scored_pair_data(9).batch(np.arange(9)), random_embeddings(9).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(embeddings, batch)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(loss(embeddings.double(), batch).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("make_task", "world_size", "pairs", "settings"),
    [
        pytest.param(TASKS["cosent"], 2, 17, {}, id="cosent, a process without pairs"),
        pytest.param(
            *(partial(TASKS["cosent"], micro_batch_size=2), 2, 21, {}), id="cosent, chunks", marks=pytest.mark.slow
        ),
        pytest.param(
            *(TASKS["cosent"], 3, 20, {"gradient_accumulation_steps": 2}),
            id="cosent, three processes, accumulation",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(TASKS["cosine_mse"], 2, 21, {"gradient_accumulation_steps": 2}),
            id="cosine_mse, uneven last batch, accumulation",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_several_processes_train_as_one(make_task, world_size, pairs, settings, tmp_path):
    make, settings = partial(make_task, **NO_DROPOUT), {"batch_size": 4, "epochs": 2} | settings
    assert_same_as_one_process(tmp_path, world_size, make, scored_pair_data(pairs), settings)


def gradients(task, batch) -> dict[str, torch.Tensor]:
    task.model.zero_grad()
    task.losses(batch)["loss"].backward()
    return {name: weight.grad.clone() for name, weight in task.model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("micro_batch_size", [1, 3, 100])
def test_chunks_give_the_gradients_of_the_whole_batch(name, micro_batch_size):
    batch = scored_pair_data(10).batch(np.arange(10))
    whole, chunked = TASKS[name](**NO_DROPOUT), TASKS[name](micro_batch_size=micro_batch_size, **NO_DROPOUT)
    sizes = []
    chunked.model.register_forward_hook(lambda _, given, __: sizes.append(given[0].size))
    whole.model.double()
    chunked.model.double()
    expected, got = gradients(whole, batch), gradients(chunked, batch)
    assert max(sizes) == min(2 * micro_batch_size, 20)
    assert got.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(got[parameter], gradient, rtol=0, atol=1e-12, msg=parameter)


def step_gradients(task, batches: list[np.ndarray], data: Dataset) -> dict[str, torch.Tensor]:
    """Of a whole step, as the update gets them, and what it reports as the loss."""
    optimizer = build_optimizer(task.model, learning_rate=0.0, weight_decay=0.0)
    scheduler = build_scheduler("constant", optimizer, warmup_proportion=0.0, total_steps=1)
    seen: dict[str, torch.Tensor] = {}
    zero = optimizer.zero_grad

    def note(**options: bool) -> None:
        seen.update({name: each.grad.clone() for name, each in task.model.named_parameters() if each.grad is not None})
        zero(**options)

    optimizer.zero_grad = note
    precision = Precision.resolve("fp32", torch.device("cpu"))
    step = OptimizationStep(task.model, task.losses, optimizer, scheduler, precision)
    weight = sum(task.loss_weight(data, indices) for indices in batches)
    seen["loss"] = step([step.prepared(data.batch(indices)) for indices in batches], len(data), weight)[0]
    return seen


@pytest.mark.parametrize("sizes", [(5, 5), (5, 2)])
def test_a_step_of_two_batches_is_the_mean_of_theirs(sizes):
    """Each batch of CoSENT counts as one, also a shorter last one."""
    data, task = scored_pair_data(sum(sizes)), cosent_task(**NO_DROPOUT)
    task.model.double()
    batches = np.split(np.arange(len(data)), [sizes[0]])
    got = step_gradients(task, batches, data)
    first, second = (step_gradients(task, [indices], data) for indices in batches)
    assert got.keys() == first.keys()
    assert (first["loss"] - second["loss"]).abs() > 1e-3
    for name, value in got.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2, rtol=0, atol=1e-12, msg=name)


def test_every_pair_counts_alike_in_a_step_of_cosine_mse():
    data, task = scored_pair_data(7), TASKS["cosine_mse"](**NO_DROPOUT)
    task.model.double()
    parts, whole = ([np.arange(5), np.arange(5, 7)], [np.arange(7)])
    got, expected = (step_gradients(task, batches, data) for batches in (parts, whole))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-12, msg=name)


def test_the_table_of_losses():
    assert {name: loss.name for name, loss in LOSSES.items()} == {name: name for name in LOSSES}
    assert list(LOSSES) == list(BatchNegConfig.__dataclass_fields__["loss"].metadata["choices"])
    assert {name: LOSSES[name].from_config(config(name)).negatives for name in LOSSES} == {
        "in_batch_negatives": Negatives.LOCAL,
        "cosent": Negatives.GLOBAL,
        "cosine_mse": Negatives.NONE,  # the mean over the pairs of all processes needs no exchange
    }


def config(loss: str = "cosent", **settings: object) -> BatchNegConfig:
    return BatchNegConfig(train_data_file="-", loss=loss, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": 0.1}, "--margin is for --loss in_batch_negatives, got cosent; leave it out"),
        ({"mean_loss": True}, "--mean_loss is for --loss in_batch_negatives, got cosent; leave it out"),
        ({"keep_duplicates": True}, "--keep_duplicates is for --loss in_batch_negatives, got cosent"),
        ({"score_range": "0,5"}, "--score_range is for --loss cosine_mse, got cosent; leave it out"),
        ({"loss": "in_batch_negatives", "score_range": "0,5"}, "--score_range is for --loss cosine_mse, got in_batch"),
        ({"loss": "cosine_mse", "scale": 1.0}, "--scale is for --loss in_batch_negatives or cosent, got cosine_mse"),
        ({"loss": "cosine_mse", "score_range": "5,0"}, "--score_range: expected a lower and a higher score, got 5,0"),
        ({"loss": "cosine_mse", "score_range": "1,1"}, "--score_range: expected a lower and a higher score, got 1,1"),
        ({"loss": "cosine_mse", "score_range": "5"}, "--score_range: expected two numbers, such as 0,5, got 5"),
        (
            {"loss": "cosine_mse", "score_range": "0-5"},
            "--score_range: expected numbers with commas between them, such as 0,5, got '0-5'",
        ),
        ({"loss": "cosine_mse", "score_range": "0,nan"}, "--score_range: expected two numbers, such as 0,5, got"),
        ({"loss": "in_batch_negatives", "dev_ratio": 0.1}, "--dev_ratio splits training examples, which have no score"),
    ],
)
def test_options_that_a_loss_does_not_have(settings, message):
    with pytest.raises(UserError) as error:
        config(**settings)
    assert message in str(error.value)


def test_options_that_it_has():
    assert config(gather_negatives=True, scale=5.0, micro_batch_size=4, dev_ratio=0.1).has_dev_examples
    assert config("cosine_mse", score_range="-1,5").score_bounds == (-1, 5)


@pytest.mark.parametrize(
    ("loss", "line", "error"),
    [
        ("cosent", "甲\t乙", ":2: expected 3 columns (a⇥b⇥score), got 2"),
        ("cosent", "甲\t乙\t好", ":2: expected a number as score (a⇥b⇥score), got '好'"),
        ("cosine_mse", "甲\t乙\t5.5", ":2: expected a score from 0 to 5 (--score_range), got 5.5"),
        ("cosine_mse", "甲\t乙\t-1", ":2: expected a score from 0 to 5 (--score_range), got -1"),
    ],
)
def test_errors_in_training_lines_name_the_line(loss, line, error, tmp_path):
    settings = {"score_range": "0,5"} if loss == "cosine_mse" else {}
    path = tmp_path / "train.txt"
    path.write_text(f"子\t丑\t5\n{line}\n寅\t卯\t0\n")
    read = LOSSES[loss].from_config(config(loss, **settings)).reader(NO_PROMPTS)
    with pytest.raises(UserError) as raised:
        read(str(path), tokenizer=AutoTokenizer.from_pretrained(TINY), max_length=8, on_bad_line="stop")
    assert f"{path}{error}" in str(raised.value)


def test_training_lines_may_be_json(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('{"text_a": "子", "text_b": "丑", "score": 5}\n{"text_a": "寅", "text_b": "卯", "score": 5.5}\n')
    settings = {"tokenizer": AutoTokenizer.from_pretrained(TINY), "max_length": 8, "on_bad_line": "stop"}
    assert scored_pairs(str(path), **settings).labels.tolist() == [5, 5.5]
    with pytest.raises(UserError, match=r"train\.json:2:\d+: expected a score from 0 to 5 \(--score_range\), got 5\.5"):
        scored_pairs(str(path), bounds=(0.0, 5.0), **settings)


@pytest.mark.parametrize(
    ("scores", "batch_size", "share", "is_warned"),
    [
        ([0.0, 1.0] * 4, 8, "0 of 1 (0.0%)", False),
        ([2.0] * 7 + [3.0], 4, "1 of 2 (50.0%)", False),
        ([0.0, 1.0] * 4, 1, "8 of 8 (100.0%)", True),
        ([0.0, 1.0] * 4 + [1.0], 8, "1 of 2 (50.0%)", False),  # the last batch has one pair
    ],
)
def test_the_log_says_how_many_batches_have_one_score_only(scores, batch_size, share, is_warned, log_lines):
    sentences = np.arange(2 * len(scores)).reshape(-1, 2)
    train = Dataset(random_store(2 * len(scores)), sentences, np.array(scores))
    CoSENT(scale=SCALE).look_at(config(batch_size=batch_size), train)
    assert any(line.endswith(f"with one score only, which give no gradient: {share}") for line in log_lines)
    assert any("no batch has two different scores, and nothing is learned" in line for line in log_lines) is is_warned
    assert any(f"scores from {min(scores):g} to {max(scores):g}, mean " in line for line in log_lines)


def test_of_several_files_the_log_has_the_scores_of_each_and_its_batches(log_lines):
    """Each file has one score in all its batches; batches of both would have two."""
    files = [Dataset(random_store(16), np.arange(16).reshape(-1, 2), np.full(8, score)) for score in (0.0, 5.0)]
    CoSENT(scale=SCALE).look_at(config(batch_size=4), SeveralFiles(["a.txt", "b.txt"], files, "proportional"))
    assert any("data: a.txt: scores from 0 to 0, mean 0" in line for line in log_lines)
    assert any("data: b.txt: scores from 5 to 5, mean 5" in line for line in log_lines)
    assert any(line.endswith("with one score only, which give no gradient: 4 of 4 (100.0%)") for line in log_lines)
    assert any(
        "no batch has two different scores" in line and "of one file: join the files" in line for line in log_lines
    )


@pytest.mark.parametrize("loss", ["cosent", "cosine_mse"])
def test_a_training_file_may_have_one_score_only(loss, tmp_path):
    """Another one may have others; CoSENT, which compares them, needs two in all."""
    path = tmp_path / "train.txt"
    path.write_text("甲\t乙\t1\n丙\t丁\t1\n")
    settings = {"score_range": "0,1"} if loss == "cosine_mse" else {}
    made = LOSSES[loss].from_config(config(loss, **settings))
    options = {"tokenizer": AutoTokenizer.from_pretrained(TINY), "max_length": 8, "on_bad_line": "stop"}
    train = made.reader(NO_PROMPTS)(str(path), **options)
    assert train.labels.tolist() == [1, 1]
    with pytest.raises(UserError, match="expected scores that differ, to correlate with, got only 1"):
        scored_pairs(str(path), **options)
    if loss == "cosent":
        with pytest.raises(UserError, match="expected scores that differ, since --loss cosent compares .* got only 1;"):
            made.look_at(config(loss), train)
    else:
        made.look_at(config(loss, **settings), train)
