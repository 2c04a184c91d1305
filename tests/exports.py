"""Saved folders of one layer, of every kind, and graphs made by hand: what tests of exports are quick with."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoTokenizer

from bertorch.data.prompts import Prompts
from bertorch.encoder.onnx_files import INT8, ONNX
from bertorch.encoder.onnx_model import KEY, GraphInfo
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.exporting import export
from bertorch.exporting.export import export_graphs
from bertorch.inference.load import load_trained
from bertorch.tasks.base import Task
from bertorch.tasks.classification import ClassificationTask
from bertorch.tasks.contrastive import ContrastiveTask
from bertorch.tasks.multi_label import MultiLabelTask
from bertorch.tasks.ranking import RankingTask
from bertorch.tasks.score import ScoreTask
from bertorch.tasks.sentence_bert import SentenceBertTask
from bertorch.tasks.tagging import TaggingTask
from bertorch.training.saving import publish
from tests.conftest import TINY
from tests.folders import Folders
from tests.small_tasks import TAGS

LABELS = ["negative", "positive"]


def _sequence(kind: type, labels: list[str], **settings: Any) -> Callable[..., Task]:
    return lambda **inputs: kind.from_pretrained(str(TINY), label_names=labels, **settings, **inputs)


def _sentence_bert(**inputs: Any) -> Task:
    return SentenceBertTask.from_pretrained(
        str(TINY), label_names=LABELS, pooling_mode="mean", output_emb_size=None, concat_multiply=True, **inputs
    )


def _embedding(pooling_mode: str, size: int | None, prompts: Prompts, **inputs: Any) -> Task:
    model = SentenceEncoder.from_pretrained(str(TINY), pooling_mode, size)
    return ContrastiveTask(model, prompts=prompts, matryoshka=(16,) if size else (), **inputs)


def _tagging(head: str, **options: Any) -> Callable[..., Task]:
    return lambda **inputs: TaggingTask.from_pretrained(
        str(TINY), tags=TAGS, head=head, head_learning_rate=1e-3, **options, **inputs
    )


KINDS: dict[str, Callable[..., Task]] = {
    "classification": _sequence(ClassificationTask, LABELS, text_pair=False),
    "windows": _sequence(ClassificationTask, LABELS, text_pair=False, windows=3),
    "multi label": _sequence(MultiLabelTask, ["a", "b", "c"], text_pair=False),
    "score": _sequence(ScoreTask, [], text_pair=False),
    "ranking": _sequence(RankingTask, [], text_pair=True),
    "sentence bert": _sentence_bert,
    "embedding": lambda **inputs: _embedding("mean", None, Prompts(), **inputs),
    "pooler and dense": lambda **inputs: _embedding("linear", 32, Prompts.of_roles("q: ", "p: "), **inputs),
    "linear tagger": _tagging("linear", constrain_training=False),
    "CRF": _tagging("crf", constrain_training=False),
    "global pointer": _tagging("global_pointer", decoding="nested", head_size=8),
}


def small_task(kind: str, seed: int = 0) -> Task:
    """A task with one layer of the embedded checkpoint, and a head and biases at random."""
    torch.manual_seed(seed)
    task = KINDS[kind](tokenizer=AutoTokenizer.from_pretrained(TINY), max_seq_length=32)
    task.model.keep_layers([0])
    with torch.no_grad():
        for name, parameter in task.model.weights.named_parameters():
            if parameter.ndim == 1 or any(head in name for head in ("classifier", "crf", "global_pointer")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    task.model.eval()
    return task


def save(task: Task, folder: Path) -> Path:
    """The folder of a task, as a run saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    publish(str(folder), task.model.weights.state_dict(), task.savables)
    return folder


def by_hand(path: Path, table: np.ndarray, *, per_token: bool = False, max_length: int | None = None) -> Path:
    """A graph of a `table` (V, C): rows of the tokens (N, L, C), or their sums over the tokens of a text (N, C).

    Padding counts where the mask does not rule it out; token types are added to each row.
    """
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["token_type_ids"], ["types"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["types", "last"], ["type_rows"]),
        helper.make_node("Add", ["rows", "type_rows"], ["logits" if per_token else "of_tokens"]),
    ]
    if not per_token:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask_rows"]),
            helper.make_node("Mul", ["of_tokens", "mask_rows"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "first"], ["logits"], keepdims=0),
        ]
    else:  # else it would be no input
        nodes.append(helper.make_node("Identity", ["attention_mask"], ["mask"]))
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in names]
    shape = ["batch", *(["length"] if per_token else []), table.shape[1]]
    constants = {"table": table.astype(np.float32), "last": np.array([2]), "first": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "by hand",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    info = GraphInfo(num_token_types=2, padding_id=0, max_length=max_length, output="logits")
    helper.set_model_props(model, {KEY: info.to_json()})
    onnx.save(model, path)
    return path


def exported_classifier(base: Path) -> Path:
    """A classifier's folder with its export in it; processes that run tests at the same time may share `base`."""
    folder = base / "classifier"
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "onnx").exists():
            save(small_task("classification"), folder)
            export_graphs(str(folder), ONNX, str(folder))
    return folder


class Graphs:
    """Two layers of the folder of a run, by its name, exported as fp32 and int8, whatever the latter loses.

    Args:
        folders: the runs.
        base: where they are; processes that run tests at the same time may share it.
    """

    def __init__(self, folders: Folders, base: Path) -> None:
        self._folders = folders
        self._base = base

    def __call__(self, name: str) -> Path:
        """The folder; it is shared, what changes it takes a copy."""
        folder = self._base / name.replace(" ", "_")
        with folder.with_suffix(".lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                few_texts(patch)
                unfinished = folder.with_suffix(".unfinished")
                shutil.copytree(self._folders[name], unfinished)
                task = load_trained(unfinished)
                task.model.keep_layers([0, 1])
                save(task, unfinished)
                export_graphs(str(unfinished), ONNX, str(unfinished))
                export_graphs(str(unfinished), INT8, str(unfinished), max_loss=0.5)
                unfinished.rename(folder)
        return folder


def few_texts(monkeypatch: Any) -> None:
    """Let checks go through few of the built-in texts, and short ones."""
    monkeypatch.setattr("bertorch.exporting.check_data.TEXTS", 40)
    monkeypatch.setattr("bertorch.exporting.check_data._LONGEST", 40)


def copied(monkeypatch: Any, exported: Path) -> None:
    """Let further exports of the same weights copy the graph."""
    source = exported / "onnx" / "model.onnx"
    monkeypatch.setattr(export, "write_graph", lambda model, padded, path: shutil.copyfile(source, path))


def flipped(exported: Path, path: Path) -> None:
    """A graph of a classifier with the signs of its last layer changed."""
    model = onnx.load(exported / "onnx" / "model.onnx")
    for each in model.graph.initializer:
        if "classifier" in each.name:
            each.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(each), each.name))
    onnx.save(model, path)
