"""Runs on several files: W processes are one, and a stopped run goes on as if it had not been."""

from functools import partial

import pytest

from bertorch.data.several_files import SeveralFiles
from bertorch.errors import InterruptedRunError
from tests.short_runs import assert_equal, assert_same_as_one_process, config, fit, stop_after, trained
from tests.small_tasks import (
    DROPOUT,
    NO_DROPOUT,
    contrastive_data,
    contrastive_task,
    cosent_task,
    pair_data,
    scored_pair_data,
    siamese_task,
)


def files(mix: str) -> SeveralFiles:
    """Pairs, groups of another width, and fewer of them than there are processes."""
    parts = [contrastive_data(11), contrastive_data(7, width=4), contrastive_data(1, width=3)]
    return SeveralFiles("abc", parts, mix)


@pytest.mark.parametrize("mix", ["proportional", pytest.param("equal", marks=pytest.mark.slow)])
def test_several_processes_are_one(mix, tmp_path):
    """Also where a process has no example of a batch, and those of the others have more texts than its first file."""
    settings = {"batch_size": 2, "epochs": 1, "gradient_accumulation_steps": 2}
    make = partial(contrastive_task, gather=True, **NO_DROPOUT)
    assert_same_as_one_process(tmp_path, 2, make, files(mix), settings)


@pytest.mark.slow
def test_several_processes_are_one_over_scores(tmp_path):
    """CoSENT compares the pairs of a batch, so those of one file; here a process has no pair of the last batch."""
    train = SeveralFiles("ab", [scored_pair_data(9), scored_pair_data(5)], "proportional")
    assert_same_as_one_process(tmp_path, 2, partial(cosent_task, **NO_DROPOUT), train, {"batch_size": 2, "epochs": 1})


@pytest.mark.slow
def test_several_processes_are_one_without_negatives(tmp_path):
    train = SeveralFiles("ab", [pair_data(11), pair_data(3)], "equal")
    assert_same_as_one_process(tmp_path, 2, partial(siamese_task, **NO_DROPOUT), train, {"batch_size": 4})


@pytest.mark.parametrize("stopped", [pytest.param(2, marks=pytest.mark.slow), 7])
def test_a_stopped_run_goes_on(stopped, tmp_path, monkeypatch):
    settings = {"batch_size": 4, "epochs": 2, "save_steps": 100}
    make = partial(contrastive_task, **DROPOUT)
    expected = trained(tmp_path / "whole", make(), files("equal"), **settings)
    with monkeypatch.context() as patch:
        stop_after(patch, stopped)
        with pytest.raises(InterruptedRunError):
            fit(config(tmp_path / "parts", **settings), make(), files("equal"))
    assert_equal(trained(tmp_path / "parts", make(), files("equal"), **settings, resume=True), expected)
