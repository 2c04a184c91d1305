"""Folders that bertorch did not save: what they are, and their models."""

from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bertorch.data.lines import first_few
from bertorch.data.tags import is_tag, scheme_of
from bertorch.encoder.pretrained import loading, saved_label_names, unplaced_weights
from bertorch.encoder.sentence_modules import SentenceModules
from bertorch.errors import UserError

_MAX_SEQ_LENGTH = 512  # of classifiers and taggers, whose folders do not say what they were trained with


def recognise(
    folder: str, modules: SentenceModules | None, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What a folder without the metadata of bertorch is, by its modules.json or the architecture in its config.json.

    Config and tokenizer are those of `modules.transformer_folder`, if there is one.

    Returns:
        `task` (`embedding`, `classification`, `multi_label`, `score` or `tagging`), `max_seq_length`, and for tagging
        `tag_scheme`.

    Raises:
        UserError: it is something else; the message says what, and what can be opened.
    """
    if modules is not None:
        limit = _token_limit(config, modules.max_seq_length or tokenizer.model_max_length, 2**20)
        return {"task": "embedding", "max_seq_length": limit}
    limit = _token_limit(config, tokenizer.model_max_length, _MAX_SEQ_LENGTH)
    architecture = (config.architectures or ["a config.json without architectures"])[0]
    if architecture.endswith("ForSequenceClassification"):
        if config.num_labels == 1 and config.problem_type in (None, "regression"):
            return {"task": "score", "max_seq_length": limit}
        problem = config.problem_type or "single_label_classification"
        if problem == "multi_label_classification":
            return {"task": "multi_label", "max_seq_length": limit}
        if problem != "single_label_classification" or config.num_labels == 1:
            raise UserError(
                f"{folder}/config.json: expected a classifier that gives a text one of several labels, got "
                f"problem_type {config.problem_type} and num_labels {config.num_labels}"
            )
        return {"task": "classification", "max_seq_length": limit}
    if architecture.endswith("ForTokenClassification"):
        return {"task": "tagging", "max_seq_length": limit, "tag_scheme": _tag_scheme(folder, config)}
    raise UserError(
        f"{folder}: expected a folder saved by bertorch or sentence-transformers, or transformers' "
        f"…ForSequenceClassification or …ForTokenClassification, got {architecture}; a model without a task is for "
        "--pretrained_model_name_or_path of a training script"
    )


def load_complete(auto_class: Any, folder: str) -> PreTrainedModel:
    """Load a model, in fp32, from a local folder that transformers or sentence-transformers saved.

    Raises:
        UserError: it cannot be read, lacks weights other than those of a bare encoder's pooler, or has some of an
            encoder that its config does not describe.
    """
    if (Path(folder) / "adapter_config.json").exists():  # without peft, transformers would leave the adapter out
        raise UserError(f"{folder}: expected a whole model, got one with a PEFT adapter; merge the adapter into it")
    with loading(folder, "the model's folder"):
        options = {"dtype": torch.float32, "output_loading_info": True, "trust_remote_code": False}
        model, report = auto_class.from_pretrained(folder, **options)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        got = f"{len(missing)} too few: {', '.join(missing[:3])} …"
        raise UserError(f"{folder}: expected all weights of {type(model).__name__}, got {got}")
    if of_encoder := unplaced_weights(model, folder, report["unexpected_keys"]):
        raise UserError(
            f"{folder}: expected the weights of {type(model).__name__} as config.json describes it, got others in its "
            f"encoder: {first_few(of_encoder)}; it would be another model without them"
        )
    return model


def _token_limit(config: PretrainedConfig, own: int, most: int) -> int:
    positions = getattr(config, "max_position_embeddings", None) or 0  # 0, -1 or None is no limit
    return min(limit for limit in (own, positions, most) if limit > 0)


def _tag_scheme(folder: str, config: PretrainedConfig) -> str:
    """The scheme of the label names; in all of them an entity of several tokens begins with B-."""
    tags = saved_label_names(config, folder)
    inside = [tag for tag in tags if tag[:2] in ("I-", "M-", "E-")]
    errors = [f"{tag!r}, which is none" for tag in tags if not is_tag(tag)]
    errors += [f"{tag} without B-{tag[2:]}" for tag in inside if f"B-{tag[2:]}" not in tags]
    errors += ["no O"] if "O" not in tags else []
    if errors:
        got = ", ".join(errors[:3])
        raise UserError(f"{folder}/config.json: id2label: expected O, B-X, I-X or other tags, got {got}")
    return scheme_of(tags)
