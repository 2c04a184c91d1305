"""Running out of memory, in a step and in an evaluation; the errors come from PyTorch's own classes and allocator."""

import re

import pytest
import torch

from bertorch.config import ContrastiveConfig, TrainingConfig
from bertorch.errors import UserError
from bertorch.training import run_state
from bertorch.training.loop import fit
from bertorch.training.memory import out_of_memory_told
from bertorch.training.step import Precision
from tests.architectures import random_batch
from tests.conftest import REVIEWS, Script, launcher
from tests.log_lines import command
from tests.short_runs import config
from tests.small_tasks import classification_data, classification_task, contrastive_task

CPU, GPU = Precision("fp32", "cpu"), Precision("fp32", "cuda")
TASK = classification_task()
CONTRASTIVE = contrastive_task()


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


def told(configuration, task=TASK, precision=CPU, batches=None, error=too_much_for_the_gpu) -> str:
    """The first line of the error."""
    with pytest.raises(UserError) as caught, out_of_memory_told("step 7", configuration, task, precision, batches):
        error()
    return str(caught.value).splitlines()[0]


def plain(**settings) -> TrainingConfig:
    return TrainingConfig(train_data_file="-", **settings)


def contrastive(**settings) -> ContrastiveConfig:
    return ContrastiveConfig(train_data_file="-", **settings)


@ERRORS
def test_a_step(error, reason, tmp_path, monkeypatch):
    task = classification_task()
    data = classification_data(20)
    learn, steps = task.training_output, []

    def third_fails(batch):
        steps.append(batch)
        return learn(batch) if len(steps) < 3 else error()

    monkeypatch.setattr(task, "training_output", third_fails)
    with pytest.raises(UserError, match="^step 3: expected enough memory on the machine for a batch ") as caught:
        fit(config(tmp_path, save_steps=2), task, data, None)
    assert f" of --batch_size 8 per process ({len(steps[-1].input_ids)} tokens), got too little; " in str(caught.value)
    assert reason in str(caught.value).splitlines()[1]
    assert (tmp_path / "checkpoint-2").is_dir()


@ERRORS
def test_an_evaluation(error, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(run_state, "evaluate", error)
    data = classification_data(20)
    with pytest.raises(
        UserError,
        match="^evaluation after step 3: expected enough memory .* --batch_size 8 per process, got too little; ",
    ) as caught:
        fit(config(tmp_path), classification_task(), data, data)
    assert reason in str(caught.value).splitlines()[1]


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_told("step 7", plain(), TASK, CPU):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    ("configuration", "task", "precision", "remedies"),
    [
        (plain(), TASK, CPU, "gradient_checkpointing batch_size gradient_accumulation_steps max_seq_length"),
        (plain(gradient_checkpointing=True, batch_size=1), TASK, GPU, "precision max_seq_length"),
        (
            *(contrastive(gradient_checkpointing=True), CONTRASTIVE, Precision("bf16", "cuda")),
            "micro_batch_size batch_size max_seq_length",
        ),
        (
            *(contrastive(micro_batch_size=4, batch_size=64), CONTRASTIVE, CPU),
            "gradient_checkpointing micro_batch_size batch_size max_seq_length",
        ),
        (contrastive(micro_batch_size=1), CONTRASTIVE, CPU, "gradient_checkpointing batch_size max_seq_length"),
    ],
    ids=["classifier", "nothing left but precision", "contrastive", "chunks", "one row at once"],
)
def test_what_to_lower_in_training(configuration, task, precision, remedies):
    message = told(configuration, task, precision, [random_batch([3, 4]), random_batch([5, 6, 7])])
    assert message.startswith("step 7: expected enough memory")
    assert f"--batch_size {configuration.batch_size} per process (18 tokens)" in message
    named = message.partition("got too little")[2].partition(".")[0]
    assert re.findall(r"--(\w+)", named) == remedies.split()


def test_what_helps_in_training_only_is_not_named_for_an_evaluation():
    message = told(contrastive(micro_batch_size=4), CONTRASTIVE)
    assert not re.search("gradient_checkpointing|micro_batch_size|tokens", message)
    assert "lower --batch_size" in message


STARVED = """
import os, runpy, sys
sys.path.insert(0, os.getcwd())
import torch
from bertorch.training.tasks import ClassificationTask

learn, steps = ClassificationTask.training_output, []

def third_fails(task, batch):
    steps.append(batch)
    if len(steps) == 3 and os.environ["RANK"] == "1":
        torch.empty(1 << 55, dtype=torch.uint8)
    return learn(task, batch)

ClassificationTask.training_output = third_fails
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
    assert "process 1: step 3: expected enough memory on the machine for a batch of --batch_size 32 " in log
    assert "lower --max_seq_length 128" in log
