"""From a saved folder of any of the five scripts to a model in use."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, PretrainedConfig

from bertorch import distributed
from bertorch.config import PRECISIONS, TrainingConfig
from bertorch.data.tags import SCHEMES
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.cpu import use_onednn
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.pretrained import empty_model, load_config, load_tokenizer, saved_label_names
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.errors import UserError
from bertorch.files import reason
from bertorch.inference.engine import Engine
from bertorch.inference.kinds import EntityTagger, SentenceBert, SentenceEmbedder, TextClassifier
from bertorch.inference.model import Model, Origin
from bertorch.tasks.metadata import CLASSIFICATION, EMBEDDING, KEY, SENTENCE_BERT, TAGGING, TASKS, Description
from bertorch.tasks.siamese import SiameseClassifier
from bertorch.training import weights as checkpoint
from bertorch.training.step import Precision
from bertorch.training.tagging import build_tagger

_OPTION = "the model's folder"


def load(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    precision: str = "auto",
    batch_size: int = 32,
    max_seq_length: int | None = None,
    shared: bool = False,
) -> Model:
    """Load what any of the five scripts saved, for use.

        from bertorch import load

        model = load("checkpoint")
        print(model.predict(["房间干净，早餐也丰富。"])[0].label)

    Args:
        folder: `--saved_dir` of the run, or a checkpoint in it.
        device: such as `cuda:1`; by default a GPU if there is one, else the CPU.
        precision: `fp32`, `bf16` or `fp16`; `auto` is half precision on a GPU, fp32 on the CPU.
        batch_size: inputs of a batch; on a GPU they are more.
        max_seq_length: tokens of an input; None takes as many as in training.
        shared: whether the processes that a launcher started share the inputs out; all of them must then make the same
            calls, and all get all results.

    Raises:
        UserError: it is no such folder, or one that cannot be read; there is no such device or precision.
    """
    folder = str(folder)
    if precision not in PRECISIONS or batch_size < 1:
        raise UserError(
            f"load: expected a precision of {', '.join(PRECISIONS)} and a batch_size of at least 1, got "
            f"{precision!r} and {batch_size}"
        )
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: expected the folder that a run saved, got no folder")
    on = distributed.device() if device is None else _device(device)
    config = load_config(folder, _OPTION)
    weights = checkpoint.load_weights(folder)
    description = Description.read(config, folder) or _recognised(folder, config, weights)
    if max_seq_length is not None:
        description = replace(description, max_seq_length=max_seq_length)
    engine = Engine(on, _precision(precision, on), batch_size=batch_size, shared=shared)
    origin = Origin(folder, description, load_tokenizer(folder, _OPTION), engine)
    return _BUILDERS[description.task](origin, config, weights)


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"load: expected a device that this machine has, such as cpu or cuda:0, got {str(name)!r}: {reason(error)}"
        ) from error
    return device


def _precision(name: str, device: torch.device) -> Precision:
    precision = Precision.resolve(name, device)
    if name == "auto" and device.type == "cuda" and precision.name == "fp32":
        return Precision.resolve("fp16", device)  # a GPU without bf16
    return precision


def _ready(model: EncoderModel, origin: Origin) -> None:
    for encoder in model.encoders:
        encoder.require_positions(origin.description.max_seq_length)
    engine = origin.engine
    model.eval().to(engine.device)
    if engine.device.type == "cpu":
        with engine.precision.autocast():
            for encoder in model.encoders:
                use_onednn(encoder, engine.precision.dtype)


def _text_classifier(origin: Origin, config: PretrainedConfig, weights: Mapping[str, Tensor]) -> Model:
    labels = saved_label_names(config, origin.folder)
    model = SequenceClassifier(empty_model(AutoModelForSequenceClassification, config, origin.folder))
    checkpoint.place(model.weights, weights, model.encoder_prefix, origin.folder)
    _ready(model, origin)
    return TextClassifier(origin, model, labels)


def _embedder(origin: Origin, config: PretrainedConfig) -> SentenceEncoder:
    description = origin.description
    model = empty_model(AutoModel, config, origin.folder)
    return SentenceEncoder(model, str(description.pooling_mode), description.output_emb_size)


def _sentence_embedder(origin: Origin, config: PretrainedConfig, weights: Mapping[str, Tensor]) -> Model:
    model = _embedder(origin, config)
    checkpoint.place(model.weights, weights, model.encoder_prefix, origin.folder)
    _ready(model, origin)
    return SentenceEmbedder(origin, model)


def _sentence_bert(origin: Origin, config: PretrainedConfig, weights: Mapping[str, Tensor]) -> Model:
    labels = saved_label_names(config, origin.folder)
    embedder = _embedder(origin, config)
    model = SiameseClassifier(embedder, len(labels), concat_multiply=origin.description.concat_multiply)
    checkpoint.place(model.weights, weights, model.encoder_prefix, origin.folder)
    _ready(model, origin)
    return SentenceBert(origin, model, labels)


def _entity_tagger(origin: Origin, config: PretrainedConfig, weights: Mapping[str, Tensor]) -> Model:
    tagger, tags = build_tagger(origin.folder, config, weights)
    _ready(tagger, origin)
    return EntityTagger(origin, tagger, tags)


_BUILDERS = {
    CLASSIFICATION: _text_classifier,
    SENTENCE_BERT: _sentence_bert,
    EMBEDDING: _sentence_embedder,
    TAGGING: _entity_tagger,
}


def _recognised(folder: str, config: PretrainedConfig, weights: Mapping[str, Tensor]) -> Description:
    """The description of a folder that was saved before folders had one, where its files leave no doubt.

    Raises:
        UserError: they do.
    """
    architecture = (getattr(config, "architectures", None) or [""])[0]
    default = TrainingConfig.max_seq_length
    found = None
    if architecture.endswith("ForTokenClassification") and getattr(config, "tag_scheme", None) in SCHEMES:
        found = Description(task=TAGGING, max_seq_length=default)
    elif architecture.endswith("ForSequenceClassification"):
        found = Description(task=CLASSIFICATION, max_seq_length=default)
    elif (Path(folder) / "modules.json").is_file():
        found = _recognised_embedder(folder, config, weights)
    if found is None:
        raise UserError(
            f"{folder}: expected the saved folder of {', '.join(TASKS.values())}, got a config.json without "
            f"{KEY!r}, which says which of them; run that script with --init_from_ckpt {folder} --learning_rate 0 "
            "--epochs 1 to save the weights as this version has them"
        )
    logger.info("{}: saved by an earlier version; taken for one of {}", folder, TASKS[found.task])
    return found


def _recognised_embedder(folder: str, config: PretrainedConfig, weights: Mapping[str, Tensor]) -> Description | None:
    """Pooling and sizes as sentence-transformers is told them."""
    try:
        pooling = _json(folder, "1_Pooling/config.json")
        listed = [str(module["type"]).rpartition(".")[2] for module in _json(folder, "modules.json")]
        max_seq_length = int(_json(folder, "sentence_bert_config.json")["max_seq_length"])
        is_mean = bool(pooling["pooling_mode_mean_tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    reduced = weights.get("emb_reduce_linear.weight")  # (E, H)
    size = None if reduced is None else len(reduced)
    has_pooler = listed.count("Dense") > (reduced is not None)
    classifier = weights.get("classifier.weight")  # (C, 3E or 4E)
    return Description(
        task=EMBEDDING if classifier is None else SENTENCE_BERT,
        max_seq_length=max_seq_length,
        pooling_mode="mean" if is_mean else "linear" if has_pooler else "cls",
        output_emb_size=size,
        concat_multiply=classifier is not None and classifier.shape[-1] == 4 * (size or config.hidden_size),
    )


def _json(folder: str, name: str) -> Any:
    return json.loads((Path(folder) / name).read_text(encoding="utf-8"))
