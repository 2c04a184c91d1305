"""Training a reranker: the loss of groups, one packed call, several processes, what ends a run."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from bertorch.data.dataset import Dataset
from bertorch.errors import UserError
from bertorch.tasks.ranking import RankingTask
from bertorch.tasks.ranking_metric import RankingMetric
from tests.conftest import RANKING, TINY, run_processes
from tests.short_runs import assert_same_as_one_process, config, fit, trained
from tests.small_tasks import NO_DROPOUT, candidate_data, group_data, ranking_task

CPU = torch.device("cpu")


def quiet(task):
    task.model.eval()
    return task


def test_the_loss_is_cross_entropy_summed_over_groups():
    task, data = quiet(ranking_task()), group_data(5)
    task.model.double()
    batch = data.batch(np.array([3, 0, 4]))
    scores = task.outputs(batch).view(3, 4).tolist()
    expected = sum(math.log(sum(map(math.exp, row))) - row[0] for row in scores)
    losses = task.losses(batch)
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-12)
    assert losses.keys() == {"loss"} == set(task.loss_parts)


def test_the_loss_is_in_fp32_whatever_the_scores_are():
    task, batch = quiet(ranking_task()), group_data(3).batch(np.arange(3))
    outputs = task.outputs(batch)
    half = task.losses_of(outputs.bfloat16(), batch)["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(task.losses_of(outputs.bfloat16().float(), batch)["loss"].item(), abs=0)


def test_all_pairs_of_all_groups_are_one_packed_call_and_score_as_each_pair_alone():
    """Against transformers, one pair at a time; the texts of the sample, cut at 16 tokens."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    task = quiet(RankingTask.from_pretrained(str(TINY), tokenizer, (), text_pair=True, max_seq_length=16))
    rows = [line.split("\t") for line in (RANKING / "train.txt").read_text().splitlines()[:6]]
    columns = [list(column) for column in zip(*rows, strict=True)]
    data = Dataset.of_sequences(tokenizer, columns, np.zeros(6, np.int64), max_length=16)
    batch = data.batch(np.arange(6))
    calls = []
    task.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        scores = task.outputs(batch).view(6, 4)
        assert (calls, batch.size) == ([1], 24)
        plain = type(task.model.model).from_pretrained(TINY, config=task.model.config, attn_implementation="sdpa")
        plain.load_state_dict(task.model.model.state_dict())
        for row, (query, *candidates) in zip(scores, rows, strict=True):
            for score, candidate in zip(row, candidates, strict=True):
                inputs = tokenizer(query, candidate, truncation=True, max_length=16, return_tensors="pt")
                torch.testing.assert_close(score, plain.eval()(**inputs).logits[0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_several_processes_train_as_one(world_size, accumulation, tmp_path):
    settings = {"batch_size": 3, "gradient_accumulation_steps": accumulation, "weight_decay": 0.01}
    assert_same_as_one_process(tmp_path, world_size, partial(ranking_task, **NO_DROPOUT), group_data(14), settings)


def collapsed() -> RankingTask:
    """All scores are the same, and stay so."""
    task = ranking_task()
    for parameter in task.model.model.classifier.parameters():
        torch.nn.init.zeros_(parameter)
        parameter.requires_grad_(False)
    return task


COLLAPSED = (
    r"step 2 \(epoch 1, batch 2\), expected scores that tell candidates apart, got 0 for all 9 lines: "
    r"the model has collapsed\. The last save in .* is from before it; lower --learning_rate"
)


def test_scores_that_no_longer_vary_end_the_run(tmp_path):
    with pytest.raises(UserError, match=COLLAPSED):
        fit(config(tmp_path, save_steps=2), collapsed(), group_data(20), candidate_data(9, 3))
    assert not (tmp_path / "pytorch_model.bin").exists()


def end_collapsed(folder) -> None:
    with pytest.raises(UserError, match=COLLAPSED):
        fit(config(folder, save_steps=2), collapsed(), group_data(20), candidate_data(9, 3))


def test_they_end_the_run_on_all_processes(tmp_path):
    run_processes(2, end_collapsed, tmp_path)


def test_the_dev_metric_is_mrr(tmp_path, log_lines):
    assert isinstance(ranking_task().metric(CPU), RankingMetric)
    trained(tmp_path, ranking_task(), group_data(20), candidate_data(9, 3), save_steps=2, max_steps=2)
    assert sum(line.startswith("MRR@10: ") for line in log_lines) == 1
    assert any(line.startswith("best dev MRR@10: ") for line in log_lines)
