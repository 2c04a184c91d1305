"""Whose run a folder holds, and which checkpoint a run goes on from."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bertorch.config import ClassifierConfig, TrainingConfig
from bertorch.data.model_digests import ModelDigests
from bertorch.encoder.onnx_files import files_of
from bertorch.errors import UserError
from bertorch.tasks.base import Negatives
from bertorch.training.metrics_file import METRICS
from bertorch.training.run_folder import RECORD, RunFolder
from bertorch.training.run_options import describe_run, plain_options
from bertorch.training.run_state import RunState
from bertorch.training.state import State
from bertorch.weights import WEIGHTS

OPTIONS = {"script": "ClassifierConfig", "--learning_rate": 1e-3, "content of --train_data_file": "a" * 64}


class Note:
    """A savable of one file, which may lie in a folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / self.name).parent.mkdir(exist_ok=True)
        (Path(folder) / self.name).write_text("note")


def opened(path: Path, options=OPTIONS, *, keep=2, **flags) -> tuple[RunFolder, dict[str, State] | None]:
    path.mkdir(parents=True, exist_ok=True)  # as the lock does
    folder = RunFolder(str(path), options, keep=keep, digests={})
    return folder, folder.open(**{"resume": False, "overwrite": False, **flags})


def checkpoint_of(step: int, *, of: int = 9, savables=()):
    """The parts of a checkpoint, and what is saved beside them."""
    parts = {
        "progress": State({}, {"step": step, "last_step": of}),
        "model": State({"a": torch.full((3,), float(step))}),
        "optimizer": State({"a.exp_avg": torch.full((3,), step / 2)}, {"rates": [0.5]}),
    }
    return parts, savables


def save(folder: RunFolder, step: int, *, of: int = 9, savables=()) -> None:
    parts, _ = checkpoint_of(step, of=of)
    folder.save_weights(parts["model"].tensors, savables)
    folder.save_checkpoint(step, parts, savables)


def step_of(parts: dict[str, State]) -> int:
    return parts["progress"].values["step"]


def names(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_an_interrupted_run_goes_on_from_its_newest_checkpoint(tmp_path, log_lines):
    folder, state = opened(tmp_path / "new" / "run")
    assert state is None
    for step in (3, 6, 12):
        save(folder, step, of=20)
    for resume in (False, True):
        _, state = opened(tmp_path / "new" / "run", resume=resume)
        assert step_of(state) == 12
        assert torch.equal(state["model"].tensors["a"], torch.full((3,), 12.0))
        assert torch.equal(state["optimizer"].tensors["a.exp_avg"], torch.full((3,), 6.0))
        assert state["optimizer"].values == {"rates": [0.5]}
        assert log_lines[-1].endswith("goes on after step 12; --overwrite would start from the beginning")


def test_a_finished_run_starts_anew_unless_told_to_resume(tmp_path, log_lines):
    save(opened(tmp_path)[0], 9)
    assert opened(tmp_path)[1] is None
    assert "is from an earlier run; the first save of this one replaces it" in log_lines[-1]
    assert step_of(opened(tmp_path, resume=True)[1]) == 9
    assert log_lines[-1].endswith("the run is complete, after step 9")


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path, log_lines):
    assert opened(tmp_path, resume=True)[1] is None
    assert log_lines[-1].endswith("no checkpoint to go on from yet; starts from the beginning")


@pytest.mark.parametrize(("keep", "kept"), [(0, []), (1, [9]), (2, [6, 9]), (5, [3, 6, 9])])
def test_the_newest_checkpoints_are_kept(keep, kept, tmp_path):
    folder, _ = opened(tmp_path, keep=keep)
    for step in (3, 6, 9):
        save(folder, step)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in kept}


def test_another_runs_results_are_refused(tmp_path):
    save(opened(tmp_path)[0], 3)
    other = OPTIONS | {"--learning_rate": 2e-3, "content of --train_data_file": "b" * 64}
    for resume in (False, True):
        with pytest.raises(UserError) as refused:
            opened(tmp_path, other, resume=resume)
        assert str(refused.value).splitlines() == [
            f"--saved_dir {tmp_path}: holds the results of another run. They differ in",
            "  --learning_rate: 0.001 there, 0.002 now",
            "  content of --train_data_file: aaaaaaaaaaaa there, bbbbbbbbbbbb now",
            "To keep both, choose another --saved_dir; --overwrite replaces those that are there.",
        ]


@pytest.mark.parametrize("name", [WEIGHTS, "model.safetensors"])
def test_weights_of_another_program_are_refused(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"--saved_dir {tmp_path}: expected an empty folder .* got {name}"):
        opened(tmp_path)
    folder, _ = opened(tmp_path, overwrite=True)
    assert (tmp_path / name).exists()  # until there is something to replace it
    save(folder, 3)
    assert not (tmp_path / "model.safetensors").exists()  # it would be loaded instead of the new weights


@pytest.mark.parametrize("name", ["trainer_state.json", "run.json"])
def test_checkpoints_of_another_program_or_run_are_refused(name, tmp_path):
    """A run with `--saved_dir folder/checkpoint-500` is one, too."""
    other = tmp_path / "checkpoint-500" / name
    other.parent.mkdir()
    other.write_text("{}")
    for resume in (False, True):
        with pytest.raises(
            UserError, match=f"--saved_dir {tmp_path}: expected an empty folder .* got checkpoint-500 of"
        ):
            opened(tmp_path, resume=resume)
    assert other.exists()
    folder, _ = opened(tmp_path, overwrite=True)
    assert other.exists()
    save(folder, 3)
    assert not other.exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_in_the_place_of_the_metrics_is_not_written_through(is_there, tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "run" / METRICS
    if is_there:
        victim.write_text("kept")
    link.parent.mkdir()
    link.symlink_to(victim)
    folder, _ = opened(tmp_path / "run")
    folder.write_metrics({"step": 1, "loss": 0.5})
    save(folder, 3)
    folder.write_metrics({"step": 4, "loss": 0.25})
    assert not link.is_symlink()
    assert len(link.read_text().splitlines()) == 2
    assert (victim.read_text() if is_there else victim.exists()) == ("kept" if is_there else False)


def test_a_checkpoint_that_is_being_removed_is_none(tmp_path, monkeypatch):
    folder, _ = opened(tmp_path, keep=1)
    save(folder, 3)

    def killed(path):
        (path / "training_state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("bertorch.atomic.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.save_checkpoint(6, *checkpoint_of(6))
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-6"}
    assert step_of(opened(tmp_path)[1]) == 6
    assert list(tmp_path.glob(".unfinished-*")) == []


def test_a_full_disk_at_the_first_checkpoint_leaves_the_earlier_run(tmp_path, monkeypatch):
    save(opened(tmp_path)[0], 9)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    folder, _ = opened(tmp_path, OPTIONS | {"--learning_rate": 2e-3}, overwrite=True)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bertorch.training.run_folder.save_file", full)
    with pytest.raises(UserError, match="What was saved there before is as it was"):
        folder.save_checkpoint(3, *checkpoint_of(3))
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_weights_that_a_run_started_from_and_may_have_replaced(tmp_path):
    """The same command would start from what it trained itself."""
    source = {"sources_inside": [f"--init_from_ckpt {tmp_path / WEIGHTS}"]}
    save(opened(tmp_path)[0], 9)
    other = OPTIONS | {"--learning_rate": 2e-3}
    folder, _ = opened(tmp_path, other, overwrite=True, **source)
    folder.save_weights({"a": torch.zeros(3)}, [])
    with pytest.raises(
        UserError, match=f"may have replaced the weights that it started from .--init_from_ckpt {tmp_path}"
    ):
        opened(tmp_path, other, resume=True, **source)
    assert opened(tmp_path, other, overwrite=True, **source)[1] is None
    folder.save_checkpoint(3, *checkpoint_of(3))
    assert step_of(opened(tmp_path, other, resume=True, **source)[1]) == 3


def test_overwriting_clears_away_the_other_runs_files_at_the_first_save(tmp_path):
    save(opened(tmp_path)[0], 9, savables=[Note("modules.json"), Note("2_Dense/config.json")])
    (tmp_path / "my notes.txt").touch()
    before = names(tmp_path)
    other = OPTIONS | {"--learning_rate": 2e-3}
    folder, state = opened(tmp_path, other, overwrite=True)
    assert state is None
    assert names(tmp_path) == before
    save(folder, 3, savables=[Note("config.json")])
    checkpoint = {"config.json", "model.safetensors", "optimizer.safetensors", "training_state.json"}
    own = {WEIGHTS, RECORD, METRICS, "config.json", *(f"checkpoint-3/{name}" for name in checkpoint)}
    assert names(tmp_path) == own | {"my notes.txt"}
    assert not (tmp_path / "2_Dense").exists()
    assert step_of(opened(tmp_path, other)[1]) == 3


@pytest.mark.parametrize("other", [False, True])
def test_exports_of_weights_that_are_replaced_go(other, tmp_path, log_lines):
    """Of this run or another one: other programs would still take them. A graph of somebody else stays."""
    save(opened(tmp_path)[0], 3)
    graph = tmp_path / "onnx" / "model.onnx"
    graph.parent.mkdir()
    for file in files_of(graph):
        file.write_text("{}")
    foreign = graph.with_name("model_qint8_avx2.onnx")
    foreign.touch()
    options = OPTIONS | {"--learning_rate": 2e-3} if other else OPTIONS
    folder, _ = opened(tmp_path, options, overwrite=other)
    assert graph.exists()
    save(folder, 6)
    assert {name for name in names(tmp_path) if name.startswith("onnx")} == {f"onnx/{foreign.name}"}
    assert any("model.onnx: is of weights that are replaced now, and was removed" in line for line in log_lines)


def test_checkpoints_of_an_earlier_run_are_not_taken_for_its_own(tmp_path):
    """As if the new run was killed between its first file and the removal of the old checkpoints."""
    save(opened(tmp_path / "run")[0], 9)
    shutil.copytree(tmp_path / "run" / "checkpoint-9", tmp_path / "aside")
    folder, _ = opened(tmp_path / "run")
    folder.save_weights({"a": torch.zeros(3)}, [])
    (tmp_path / "aside").rename(tmp_path / "run" / "checkpoint-9")
    assert opened(tmp_path / "run", resume=True)[1] is None


def test_a_checkpoint_that_cannot_be_read_is_left_out(tmp_path, log_lines):
    folder, _ = opened(tmp_path)
    for step in (3, 6):
        save(folder, step)
    file = tmp_path / "checkpoint-6" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    assert step_of(opened(tmp_path)[1]) == 3
    assert any("checkpoint-6: skipped, it cannot be read" in line for line in log_lines)


def test_one_that_cannot_be_read_does_not_take_the_place_of_the_next(tmp_path):
    folder, _ = opened(tmp_path)
    for step in (3, 6):
        save(folder, step)
    (tmp_path / "checkpoint-6" / "training_state.json").unlink()
    folder, _ = opened(tmp_path, keep=1)
    save(folder, 4)  # as a stop request has it
    assert step_of(opened(tmp_path)[1]) == 4
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}


def test_what_a_killed_run_did_not_finish_to_remove_goes_when_it_is_resumed(tmp_path):
    folder, _ = opened(tmp_path)
    for step in (3, 6, 9):
        save(folder, step)
    (tmp_path / "checkpoint-6" / "training_state.json").unlink()
    assert step_of(opened(tmp_path, resume=True, keep=1)[1]) == 9
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-9"}


def test_a_checkpoint_from_before_the_list_of_parts_is_resumed(tmp_path):
    save(opened(tmp_path)[0], 3)
    state = tmp_path / "checkpoint-3" / "training_state.json"
    content = json.loads(state.read_text())
    optimization = {
        "rates": [0.25],
        "scheduler": {"last_epoch": 3},
        "scaler": {},
        "overflows": 1,
        "tensors": ["a.exp_avg"],
    }
    best = {"name": "accuracy", "value": 0.5, "step": 2, "report": ["table"]}
    earlier = {"step": 3, "steps": 9, "processes": 2, "unimproved": 1, "weights_step": 2, "history": [{"step": 2}]}
    earlier |= {"run": content["run"], "options": content["options"], "best": best, "optimization": optimization}
    state.write_text(json.dumps(earlier))
    parts = opened(tmp_path)[1]
    run = RunState(0)
    run.restore(parts["progress"])
    assert (run.step, run.last_step, run.processes, run.weights_step, run.evaluations_since_best) == (3, 9, 2, 2, 1)
    assert (run.best["summary"], run.history) == (["table"], [{"step": 2}])
    assert torch.equal(parts["optimizer"].tensors["a.exp_avg"], torch.full((3,), 1.5))
    assert [parts[name].values for name in ("optimizer", "scheduler", "scaler", "step")] == [
        {"rates": [0.25]},
        {"last_epoch": 3},
        {},
        {"overflows": 1},
    ]


def test_a_damaged_record_is_named(tmp_path):
    save(opened(tmp_path)[0], 3)
    (tmp_path / RECORD).write_text("[]")
    with pytest.raises(UserError, match=f"{RECORD}: expected the record of a run"):
        opened(tmp_path)


def test_a_folder_that_vanished_is_named(tmp_path):
    folder, _ = opened(tmp_path / "run")
    (tmp_path / "run").rmdir()
    with pytest.raises(UserError, match="--saved_dir .*run: expected a folder with room .* got: No such file"):
        save(folder, 3)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    folder, _ = opened(tmp_path)
    save(folder, 3)
    before = names(tmp_path)

    def full_disk(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bertorch.training.run_folder.save_file", full_disk)
    with pytest.raises(UserError, match="No space left on device. What was saved there before is as it was"):
        save(folder, 6)
    monkeypatch.undo()
    assert names(tmp_path) == before
    assert step_of(opened(tmp_path)[1]) == 3


def test_weights_in_a_checkpoint_are_as_transformers_reads_them(tmp_path):
    save(opened(tmp_path)[0], 3)
    assert load_file(tmp_path / "checkpoint-3" / "model.safetensors").keys() == {"a"}
    assert b'"format":"pt"' in (tmp_path / "checkpoint-3" / "model.safetensors").read_bytes()


def described(tmp_path: Path, content: str = "data", processes: int = 1, **settings):
    train = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"
    train.write_text(content)
    config = TrainingConfig(train_data_file=str(train), **settings)
    return describe_run(
        config, ModelDigests(tmp_path / RECORD), precision="fp32", processes=processes, negatives=Negatives.NONE
    )


def test_what_makes_a_run_another(tmp_path):
    one = described(tmp_path)
    assert json.loads(json.dumps(one)) == one
    same = [
        described(tmp_path, logging_steps=7, save_steps=9, saved_dir="elsewhere", resume=True, keep_checkpoints=3),
        described(tmp_path, batch_size=16, processes=2),
    ]
    assert same == [one, one]
    for other in (
        described(tmp_path, "other data"),
        described(tmp_path, batch_size=16),
        described(tmp_path, learning_rate=1e-4),
        described(tmp_path, seed=7),
        described(tmp_path, save_best_model=True, dev_data_file="dev.txt"),
        described(tmp_path, patience=2, dev_data_file="dev.txt"),
        described(tmp_path, max_steps=2),
        described(tmp_path, dev_ratio=0.1),
    ):
        assert other != one


def test_the_content_of_models_makes_a_run_another(tmp_path):
    model = {"pretrained_model_name_or_path": str(tmp_path / "model"), "init_from_ckpt": str(tmp_path / "start.bin")}
    (tmp_path / "model").mkdir()
    for name in ("model/config.json", "model/vocab.txt", "model/model.safetensors", "start.bin"):
        (tmp_path / name).write_text(name)
    one = described(tmp_path, **model)
    assert described(tmp_path, **model) == one
    for name in ("model/vocab.txt", "model/model.safetensors", "start.bin"):
        content = (tmp_path / name).read_text()
        (tmp_path / name).write_text(content[::-1])
        other = described(tmp_path, **model)
        assert len(set(one.items()) ^ set(other.items())) == 2
        (tmp_path / name).write_text(content)
    save(opened(tmp_path / "run", one)[0], 3)
    with pytest.raises(UserError, match="content of --init_from_ckpt: .* there, .* now"):
        opened(tmp_path / "run", other)


def test_weights_that_the_run_replaces_are_not_part_of_it(tmp_path):
    """It starts from what another run left in its folder, and has saved since."""
    (tmp_path / "run").mkdir()
    settings = {"saved_dir": str(tmp_path / "run"), "init_from_ckpt": str(tmp_path / "run" / WEIGHTS)}
    (tmp_path / "run" / WEIGHTS).write_text("before")
    one = described(tmp_path, **settings)
    (tmp_path / "run" / WEIGHTS).write_text("after")
    assert described(tmp_path, **settings) == one


def test_a_record_from_before_the_digests_of_models_is_resumed(tmp_path):
    save(opened(tmp_path)[0], 3)
    record = json.loads((tmp_path / RECORD).read_text())
    del record["digests"]
    (tmp_path / RECORD).write_text(json.dumps(record))
    now = OPTIONS | {"content of --pretrained_model_name_or_path, vocab.txt": "c" * 32}
    assert step_of(opened(tmp_path, now)[1]) == 3


@pytest.mark.parametrize("choice", [{"patience": 2}, {"save_best_model": True}, {}], ids=str)
def test_where_evaluations_decide_their_steps_make_a_run_another(choice, tmp_path):
    every_hundred, same, every_ten = (
        described(tmp_path, dev_ratio=0.1, **choice, **steps)
        for steps in ({}, {"save_steps": 7, "eval_steps": 100}, {"eval_steps": 10})
    )
    assert same == every_hundred
    assert (every_ten == every_hundred) == (not choice)


def test_the_record_has_a_later_option_only_if_it_is_used():
    """A run from before it was written with its default."""
    options = {"train_data_file": "t", "label_file": "l"}
    assert "--problem_type" not in plain_options(ClassifierConfig(**options))
    assert "--is_text_pair" in plain_options(ClassifierConfig(**options))
    assert "--windows" not in plain_options(ClassifierConfig(**options))
    assert plain_options(ClassifierConfig(**options, windows=4))["--windows"] == 4
    used = ClassifierConfig(train_data_file="t", problem_type="ranking")
    assert plain_options(used)["--problem_type"] == "ranking"
