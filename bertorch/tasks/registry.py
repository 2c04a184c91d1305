"""The tasks by the names that config.json has for them, and those of folders that bertorch did not save."""

from dataclasses import replace
from typing import Any

from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from bertorch.config import BACKENDS
from bertorch.data.tags import TagSet
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.cross_encoder import is_cross_encoder
from bertorch.encoder.foreign import load_complete, recognise
from bertorch.encoder.onnx_files import open_graph
from bertorch.encoder.pretrained import load_config, load_tokenizer, saved_label_names
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.encoder.sentence_modules import read_modules
from bertorch.errors import UserError
from bertorch.tasks.base import InputSettings, LoadedFolder, Task
from bertorch.tasks.classification import ClassificationTask
from bertorch.tasks.contrastive import ContrastiveTask
from bertorch.tasks.metadata import ModelMetadata
from bertorch.tasks.multi_label import MultiLabelTask, foreign_separator
from bertorch.tasks.ranking import RankingTask
from bertorch.tasks.score import ScoreTask
from bertorch.tasks.sentence_bert import SentenceBertTask
from bertorch.tasks.sequence_task import SequenceTask
from bertorch.tasks.tag_heads import LinearTagger
from bertorch.tasks.tagging import TaggingTask
from bertorch.weights import load_weights

TASKS: dict[str, type[Task[Any]]] = {
    task.name: task
    for task in (
        *(ClassificationTask, MultiLabelTask, ScoreTask, RankingTask),
        *(SentenceBertTask, ContrastiveTask, TaggingTask),
    )
}
# Of `run_classifier.py`, by the name of the option.
PROBLEMS: dict[str, type[SequenceTask]] = {
    task.problem_type: task for task in TASKS.values() if issubclass(task, SequenceTask)
}
_OPTION = "the model's folder"


def own_task(folder: str, max_seq_length: int | None, backend: str = BACKENDS[0]) -> Task[Any]:
    """Build the task of a folder that bertorch saved, on the CPU; `max_seq_length` None is that of training.

    With another backend than torch, a graph stands in the place of the model; see `bertorch.encoder.onnx_files`.

    Raises:
        UserError: as `task_of`, or the folder cannot be read.
    """
    config = load_config(folder, _OPTION)
    graph = open_graph(folder, backend, config)
    weights = load_weights(folder) if graph is None else graph.beside
    metadata = ModelMetadata.read(config, folder, weights)
    if max_seq_length is not None:
        metadata = replace(metadata, max_seq_length=max_seq_length)
    return task_of(LoadedFolder(folder, config, load_tokenizer(folder, _OPTION), weights, metadata, graph))


def task_of(loaded: LoadedFolder) -> Task[Any]:
    """Build the task of a folder that bertorch saved.

    Raises:
        UserError: config.json names no task that is known, or the folder is incomplete.
    """
    name = loaded.metadata.task
    if name not in TASKS:
        raise UserError(f"{loaded.folder}/config.json: expected a task of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name].from_folder(loaded)


def foreign_task(folder: str, max_seq_length: int | None, backend: str = BACKENDS[0]) -> Task[Any]:
    """Build the task of a folder without our metadata.

    It is one of sentence-transformers, if it has a modules.json, else of `AutoModelForSequenceClassification` or
    `AutoModelForTokenClassification`; a folder of `CrossEncoder` is one of the former with a modules.json.
    `max_seq_length` None takes what the folder says. The `backend` is as in `own_task`.

    Raises:
        UserError: it is something else, or its modules and settings are not among those that can be opened.
    """
    modules = None if is_cross_encoder(folder) else read_modules(folder)
    source = folder if modules is None else modules.transformer_folder
    config, tokenizer = load_config(source, _OPTION), load_tokenizer(source, _OPTION)
    found = recognise(folder, modules, config, tokenizer)
    graph = open_graph(folder, backend, config)
    inputs: InputSettings = {"tokenizer": tokenizer, "max_seq_length": max_seq_length or found["max_seq_length"]}
    if modules is not None:
        modules.prepare(tokenizer)
        model = graph or SentenceEncoder.from_modules(load_complete(AutoModel, source), modules)
        return ContrastiveTask(model, prompts=modules.prompts, **inputs)
    label_names = [] if found["task"] == "score" else saved_label_names(config, folder)
    if found["task"] != "tagging":
        classifier = graph or SequenceClassifier(load_complete(AutoModelForSequenceClassification, folder))
        if found["task"] == "score":
            return ScoreTask(classifier, text_pair=None, **inputs)
        if found["task"] == "multi_label":
            separator = foreign_separator(label_names)
            return MultiLabelTask(classifier, label_names, text_pair=None, label_separator=separator, **inputs)
        return ClassificationTask(classifier, label_names, text_pair=None, **inputs)
    tags = TagSet(label_names, found["tag_scheme"], f"{folder}/config.json: id2label")
    tagger = LinearTagger(graph or load_complete(AutoModelForTokenClassification, folder), tags)
    return TaggingTask(tagger, "linear", **inputs)
