"""Load tokenizers, configs and models by transformers; one that is missing or broken is an error that names it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bertorch import distributed
from bertorch.data.lines import first_few
from bertorch.data.tokens import allow_ids_below
from bertorch.encoder.hub import WITHOUT_NETWORK, require_found
from bertorch.errors import ShapeMismatchError, UserError
from bertorch.files import check_sums, reason, require_file

PRETRAINED = "--pretrained_model_name_or_path"
# Tokens of a tokenizer by the model's embeddings: published tables of embeddings are rounded up by a few percent.
_WARN_BELOW, _REFUSE_BELOW = 0.9, 0.5
_PAIR_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]
# What configs call the dropout of hidden states and of attention weights; other dropouts belong to heads.
ENCODER_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
)


# Numbers that older versions saved, and that a model makes by itself.
_OLD_BUFFERS = ("position_ids", "token_type_ids", "inv_freq")


def load_tokenizer(
    name: str, option: str = PRETRAINED, *, max_seq_length: int | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a hub model or local folder that `option` named.

    Raises:
        UserError: it cannot be found or read, or knows less than half of the tokens of the model, or the model's config
            has fewer positions than `max_seq_length`; it may still have fewer than its config says. So does
            tokenisation, of a text with a token that the model has no embedding for.
    """
    with distributed.main_first(), loading(name, option):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if max_seq_length is not None:
            require_positions(max_seq_length, config_positions(config), config.model_type)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        has_types = (getattr(config, "type_vocab_size", None) or 0) > 1
        if has_types and "token_type_ids" not in tokenizer.model_input_names:
            # transformers leaves them out for ALBERT, RemBERT and BigBird. Only names that are given here are saved: a
            # pipeline on the saved folder then passes the types too.
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, model_input_names=_PAIR_INPUTS)
    _check_size(tokenizer, getattr(config, "vocab_size", None) or 0, option, name)
    return tokenizer


def _check_size(tokenizer: PreTrainedTokenizerBase, expected: int, option: str, name: str) -> None:
    """Compare the number of tokens with that of the model, `expected`, as far as its config says."""
    # Where vocab.txt is missing or cut off, transformers makes a tokenizer of what is left without a warning.
    got = len(tokenizer)
    counts = f"expected a tokenizer of about {expected} tokens, as config.json has it, got one of {got}"
    if got < expected * _REFUSE_BELOW:
        raise UserError(f"{option} {name}: {counts}; are vocab.txt and the tokenizer's other files there and complete?")
    if got < expected * _WARN_BELOW:
        logger.warning("{}: {}", name, counts)
    if got > expected > 0:  # such as after `add_tokens` without `resize_token_embeddings`
        tokens = {index: token for token, index in tokenizer.get_vocab().items()}
        if extra := [tokens[index] for index in sorted(tokens) if index >= expected]:
            allow_ids_below(tokenizer, expected)
            logger.warning(
                "{}: {}, of which the last have no embedding, and texts with them are refused: {}",
                name,
                counts,
                first_few(extra),
            )


def load_config(name: str, option: str = PRETRAINED) -> PretrainedConfig:
    """Load the config of a hub model or local folder that `option` named; a `UserError` if it cannot be read."""
    with distributed.main_first(), loading(name, option):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def config_positions(config: PretrainedConfig) -> int | None:
    """Tokens of a sentence by a model's config, None without limit.

    BigBird attends to fewer than its positions in full: beyond, its sparse attention depends on the padding.
    """
    limits = [getattr(config, "max_position_embeddings", None)]
    if getattr(config, "attention_type", None) == "block_sparse":
        limits.append((5 + 2 * config.num_random_blocks) * config.block_size)
    return min((limit for limit in limits if limit and limit > 0), default=None)


def require_positions(max_seq_length: int, positions: int | None, model: str) -> None:
    """Raise a `UserError` if a model of this name has fewer positions than `--max_seq_length`."""
    if positions is not None and max_seq_length > positions:
        raise UserError(
            f"--max_seq_length {max_seq_length}: expected at most {positions}, the positions that {model} has for a "
            "sentence with full attention"
        )


def load_pretrained(auto_class: Any, name: str, *, dropout: float | None = None, **settings: Any) -> PreTrainedModel:
    """Load a model by an Auto class, in fp32 whatever the stored type; the log names the weights that start fresh.

    `dropout` is that of the encoder's hidden states and attention weights, `settings` are fields of the config, such as
    `id2label`.

    Raises:
        UserError: the model cannot be found or read, has no dropout to set, or takes none of the weights.
        ShapeMismatchError: the weights do not fit `settings`, such as another number of labels.
    """
    with distributed.main_first(), loading(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **settings)
        if dropout is not None:
            _set_dropout(config, dropout)
        options = {"dtype": torch.float32, "output_loading_info": True, "trust_remote_code": False}
        model, report = auto_class.from_pretrained(name, config=config, ignore_mismatched_sizes=True, **options)
    if report["mismatched_keys"]:  # transformers would initialise them afresh
        mismatched = [(tensor, expected, got) for tensor, got, expected in sorted(report["mismatched_keys"])]
        body = f"{model.base_model_prefix}."
        encoder = f"To start with its encoder alone, name another model and add --init_from_ckpt {name} --new_head."
        remedy = {} if any(tensor.startswith(body) for tensor, *_ in mismatched) else {"remedy": encoder}
        raise ShapeMismatchError(f"{PRETRAINED} {name}", mismatched, **remedy)
    model.config.architectures = [type(model).__name__]  # of a checkpoint for another task, it names that one
    fresh = sorted(report["missing_keys"])
    weights = _encoder_weights(model)
    lacking = [weight for weight in weights if weight in report["missing_keys"]]
    if len(lacking) == len(weights):
        raise UserError(
            f"{PRETRAINED} {name}: expected weights such as {weights[0]}, got not one that fits the encoder of "
            f"{type(model).__name__}; are they inside another object? --init_from_ckpt knows more names"
        )
    if lacking := [weight for weight in lacking if "pooler." not in weight]:
        logger.warning(
            "{}: {} weights of the encoder are missing and are made anew, such as {}",
            name,
            len(lacking),
            first_few(lacking),
        )
    if of_encoder := unplaced_weights(model, name, report["unexpected_keys"]):
        logger.warning(
            "{}: {} weights of the encoder have no place in {} as config.json describes it, and are left "
            "out, such as {}; it may not be the model that was trained",
            name,
            len(of_encoder),
            type(model).__name__,
            first_few(of_encoder),
        )
    if fresh:
        logger.info("{}: not in the checkpoint, start fresh: {}", name, ", ".join(fresh))
        _init_fresh_layers(model, fresh)
    return model


def unplaced_weights(model: PreTrainedModel, name: str, unexpected: Iterable[str]) -> list[str]:
    """The weights inside of the encoder that the model has no place for, such as of layers beyond those of its config.

    `unexpected` is what `from_pretrained` calls `unexpected_keys`. The log has the parts that all others are of: heads,
    and a pooler that the model does without.
    """
    parts = {part for part, _ in model.base_model.named_children()}
    part_of = {weight: weight.removeprefix(f"{model.base_model_prefix}.").split(".")[0] for weight in unexpected}
    if others := sorted(set(part_of.values()) - parts):
        logger.info("{}: of no use here, left out: {}", name, ", ".join(others))
    return sorted(weight for weight, part in part_of.items() if part in parts and not weight.endswith(_OLD_BUFFERS))


def _encoder_weights(model: PreTrainedModel) -> list[str]:
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    return [f"{prefix}{name}" for name, _ in model.base_model.named_parameters()]


def empty_model(auto_class: Any, config: PretrainedConfig, folder: str) -> PreTrainedModel:
    """A model of a saved config, in fp32, with random weights; a `UserError` if the config is of no such model."""
    try:
        return auto_class.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # a broken config may fail anywhere
        raise UserError(f"{folder}: expected the config.json of a model, got {reason(error)}") from error


def saved_label_names(config: PretrainedConfig, folder: str) -> list[str]:
    """The label names in a saved config by id; a `UserError` if ids are not 0 to C-1 or a name comes twice."""
    names = config.id2label
    ids = list(range(len(names)))
    if sorted(names) != ids or len(set(names.values())) != len(ids):
        expected = "each number from 0 on with a label of its own"
        raise UserError(f"{folder}/config.json: id2label: expected {expected}, got {names!r}")
    return [str(names[index]) for index in ids]


def label_settings(label_names: Sequence[str]) -> dict[str, Any]:
    """The fields of a model's config that name the classes, for label names in the order of their ids."""
    return {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}}


def _set_dropout(config: PretrainedConfig, dropout: float) -> None:
    fields = [field for field in ENCODER_DROPOUTS if hasattr(config, field)]
    if not fields:
        raise UserError(
            f"--dropout {dropout}: expected a model with one of {', '.join(ENCODER_DROPOUTS)} in its config, got "
            f"{config.model_type} with none; choose another {PRETRAINED}"
        )
    for field in fields:
        setattr(config, field, dropout)


def _init_fresh_layers(model: PreTrainedModel, fresh: list[str]) -> None:
    """Initialise fresh linear layers by Glorot and Bengio (2010), so that logits have the scale of the features.

    transformers initialises with a standard deviation of 0.02 for every shape, PyTorch with 1/√(3H). With so small a
    head the encoder changes the logits little at first, and three epochs end before it has caught up.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" in fresh:
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@contextmanager
def loading(name: str, option: str = PRETRAINED) -> Iterator[None]:
    """Turn whatever a missing or broken model raises inside transformers into a `UserError` that names it."""
    option = f"{option} {name}"
    expected = "a model of the hub or a local folder with config.json, weights and the tokenizer's files"
    try:
        if os.path.exists(name):
            _check_folder(Path(name), f"{option}: expected {expected}")
        else:
            require_found(name, f"{option}: expected {expected}")
        yield
    except UserError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower, and a broken config.json fails anywhere
        remedy = "" if os.path.exists(name) else f". {WITHOUT_NETWORK}"
        raise UserError(f"{option}: expected {expected}, got {reason(error)}{remedy}") from error


def _check_folder(path: Path, expected: str) -> None:
    """Check that a local model is a folder without pipes and devices, and that its archives are whole."""
    if not path.is_dir():
        raise UserError(f"{expected}, got a file or device; name the folder")
    for file in path.iterdir():
        if file.exists() and not file.is_dir():
            require_file(file, "a regular file in the model's folder")
            if file.suffix == ".bin":
                check_sums(file)
