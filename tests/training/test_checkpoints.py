"""Checkpoints as they should not be."""

import json

import pytest

from bertorch.errors import InterruptedRunError, UserError
from bertorch.training.checkpoints import STATE, checkpoints
from tests.short_runs import stop_after, trained
from tests.small_tasks import classification_data, classification_task
from tests.training.test_run_folder import opened, save, step_of


def test_folders_that_only_look_like_checkpoints_are_left_alone(tmp_path):
    others = ["checkpoint-²", "checkpoint-３", "checkpoint-", "checkpoint-x", "checkpoint-1.5", "checkpoint--1"]
    for name in (*others, "checkpoint-2", "checkpoint-10"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").touch()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-2"]
    folder, _ = opened(tmp_path, overwrite=True)
    save(folder, 3)
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {*others, "checkpoint-3", "checkpoint-7"}


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_is_replaced_and_what_it_leads_to_stays(target, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / "run").mkdir()
    for step in (3, 5):
        (tmp_path / "run" / f"checkpoint-{step}").symlink_to(tmp_path / target)
    folder, _ = opened(tmp_path / "run", keep=1)
    save(folder, 3)
    assert not (tmp_path / "run" / "checkpoint-3").is_symlink()
    assert (tmp_path / "elsewhere" / "file").exists()
    assert step_of(opened(tmp_path / "run")[1]) == 3


def test_a_run_goes_on_from_a_checkpoint_that_was_moved_and_linked(tmp_path):
    save(opened(tmp_path / "run")[0], 3)
    (tmp_path / "run" / "checkpoint-3").rename(tmp_path / "large disk")
    (tmp_path / "run" / "checkpoint-3").symlink_to(tmp_path / "large disk")
    assert step_of(opened(tmp_path / "run")[1]) == 3


def without(*keys: str):
    def change(content):
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return content

    return change


DAMAGES = {
    "[]": lambda _: [],
    "null": lambda _: None,
    "text": lambda _: "text",
    "without run": without("run"),
    "without parts": without("parts"),
    "without with_tensors": without("with_tensors"),
    "without progress": without("parts", "progress"),
    "without step": without("parts", "progress", "step"),
    "progress is null": lambda content: content | {"parts": content["parts"] | {"progress": None}},
    "parts are a list": lambda content: content | {"parts": ["progress"]},
    "without model": lambda content: content | {"with_tensors": ["optimizer"]},
    "tensors of numbers": lambda content: content | {"with_tensors": 5},
    "a step beyond the end": lambda content: content | {"parts": {"progress": {"step": 10, "last_step": 9}}},
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_is_skipped(change, tmp_path, log_lines):
    folder, _ = opened(tmp_path)
    for step in (3, 6):
        save(folder, step)
    file = tmp_path / "checkpoint-6" / STATE
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    assert step_of(opened(tmp_path)[1]) == 3
    assert any("checkpoint-6: skipped, it cannot be read" in line for line in log_lines)


@pytest.mark.parametrize("keys", [("optimizer", "rates"), ("step", "overflows")], ids=str)
def test_a_part_without_a_value_is_an_error_that_names_it(keys, tmp_path, monkeypatch):
    stop_after(monkeypatch, 2)
    with pytest.raises(InterruptedRunError):
        trained(tmp_path, classification_task(), classification_data(29))
    monkeypatch.undo()
    file = tmp_path / "checkpoint-2" / STATE
    file.write_text(json.dumps(without("parts", *keys)(json.loads(file.read_text()))))
    with pytest.raises(UserError, match=f"expected a newest checkpoint as a run leaves it, got KeyError: '{keys[1]}'"):
        trained(tmp_path, classification_task(), classification_data(29))
