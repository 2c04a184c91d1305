"""Running out of memory, in a step and in an evaluation; the errors come from PyTorch's own classes and allocator."""

import pytest
import torch

from bertorch.errors import UserError
from bertorch.training import run_state
from bertorch.training.memory import explain_out_of_memory
from tests.conftest import REVIEWS, Script, launcher
from tests.log_lines import command
from tests.short_runs import config, fit
from tests.small_tasks import classification_data, classification_task


def too_much_for_the_cpu(*_: object) -> None:
    """The allocator's own error: no machine has 32 PiB."""
    torch.empty(1 << 55, dtype=torch.uint8)


def too_much_for_the_gpu(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1 GiB")


def too_much_for_cublas(*_: object) -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def too_much_for_python(*_: object) -> None:
    raise MemoryError


ERRORS = pytest.mark.parametrize(
    ("error", "reason"),
    [
        (too_much_for_the_cpu, "DefaultCPUAllocator: can't allocate memory"),
        (too_much_for_the_gpu, "CUDA out of memory. Tried to allocate 20.00 MiB"),
        (too_much_for_cublas, "CUBLAS_STATUS_ALLOC_FAILED"),
        (too_much_for_python, "MemoryError"),
    ],
    ids=["CPU", "GPU", "cuBLAS", "Python"],
)


@ERRORS
def test_a_step(error, reason, tmp_path, monkeypatch):
    task = classification_task()
    data = classification_data(20)
    learn, steps = task.losses, []

    def third_fails(batch):
        steps.append(batch)
        return learn(batch) if len(steps) < 3 else error()

    monkeypatch.setattr(task, "losses", third_fails)
    with pytest.raises(UserError) as caught:
        fit(config(tmp_path, save_steps=2), task, data, None)
    first, second = str(caught.value).splitlines()
    tokens = len(steps[-1].input_ids)
    assert first.startswith(f"step 3: expected enough memory for a batch of {tokens} tokens, got too little; ")
    options = ("--gradient_checkpointing", "--batch_size", "--gradient_accumulation_steps", "--max_seq_length")
    assert all(option in first for option in options)
    assert reason in second
    assert (tmp_path / "checkpoint-2").is_dir()


@ERRORS
def test_an_evaluation(error, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(run_state, "evaluate", error)
    data = classification_data(20)
    with pytest.raises(UserError, match="^evaluation after step 3: expected enough memory, got too little; ") as caught:
        fit(config(tmp_path), classification_task(), data, data)
    assert reason in str(caught.value).splitlines()[1]


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory("step 7", "buy more"):
        raise RuntimeError("shapes differ")


STARVED = """
import os, runpy, sys
sys.path.insert(0, os.getcwd())
import torch
from bertorch.tasks.classification import ClassificationTask

learn, steps = ClassificationTask.losses, []

def third_fails(task, batch):
    steps.append(batch)
    if len(steps) == 3 and os.environ["RANK"] == "1":
        torch.empty(1 << 55, dtype=torch.uint8)
    return learn(task, batch)

ClassificationTask.losses = third_fails
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_one_process_of_two_tells_it_and_takes_the_other_down(tmp_path):
    starved = tmp_path / "starved.py"
    starved.write_text(STARVED)
    arguments = command(
        "run_classifier.py", REVIEWS / "train.txt", REVIEWS / "dev.txt", tmp_path, label_file=REVIEWS / "labels.txt"
    )
    process = Script(starved, *arguments, "--gradient_checkpointing", launcher=launcher())
    log = process.finish(check=1).stderr
    assert "process 1: step 3: expected enough memory for a batch of " in log
    assert "lower --max_seq_length" in log
