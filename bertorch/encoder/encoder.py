"""Load a pre-trained encoder and its tokenizer; run the encoder on packed batches."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bertorch import distributed
from bertorch.data.batch import PackedBatch
from bertorch.encoder.attention import ATTENTION
from bertorch.encoder.dropout import with_fast_dropout
from bertorch.encoder.layouts import BlockLayout, layout_of
from bertorch.encoder.model_folder import PRETRAINED, explained, require_vocabulary, require_weights
from bertorch.encoder.trials import evaluating, gives, one_by_one, trial_batch
from bertorch.errors import ShapeMismatchError, UserError
from bertorch.files import reason

# What configs call the dropout of hidden states and of attention weights; other dropouts belong to heads.
ENCODER_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
)


def load_tokenizer(name: str, option: str = PRETRAINED) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a hub model or local folder.

    Args:
        name: hub name or local folder.
        option: that named it, for errors.

    Raises:
        UserError: it cannot be found or read, or knows less than half of the tokens of the model.
    """
    with distributed.main_first(), explained(name, option):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    require_vocabulary(name, len(tokenizer), getattr(config, "vocab_size", None) or 0, option)
    return tokenizer


def load_config(name: str, option: str = PRETRAINED) -> PretrainedConfig:
    """Load the config of a hub model or local folder.

    Args:
        name: hub name or local folder.
        option: that named it, for errors.

    Raises:
        UserError: it cannot be found or read.
    """
    with distributed.main_first(), explained(name, option):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def load_pretrained(auto_class: Any, name: str, *, dropout: float | None = None, **settings: Any) -> PreTrainedModel:
    """Load a model through one of transformers' Auto classes, in fp32 whatever the stored type.

    The log names the weights that the checkpoint does not hold and that start fresh.

    Args:
        auto_class: such as `AutoModelForSequenceClassification`.
        name: hub name or local folder.
        dropout: hidden and attention dropout of the encoder; None keeps those of its config.
        settings: fields of the model's config to set, such as `id2label`.

    Raises:
        UserError: the model cannot be found or read, has no dropout to set, or takes none of the weights.
        ShapeMismatchError: its weights do not fit `settings`, such as another number of labels.
    """
    with distributed.main_first(), explained(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **settings)
        if dropout is not None:
            _set_dropout(config, dropout)
        model, report = auto_class.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    if report["mismatched_keys"]:  # transformers would draw them anew
        mismatched = [(tensor, expected, got) for tensor, got, expected in sorted(report["mismatched_keys"])]
        raise ShapeMismatchError(f"--pretrained_model_name_or_path {name}", mismatched)
    fresh = sorted(report["missing_keys"])
    require_weights(name, model, fresh)
    if fresh:
        logger.info("{}: not in the checkpoint, start fresh: {}", name, ", ".join(fresh))
        _draw_fresh_layers(model, fresh)
    return model


def empty_model(auto_class: Any, config: PretrainedConfig, folder: str) -> PreTrainedModel:
    """A model of a saved config, in fp32, whose weights are still to be loaded.

    Raises:
        UserError: the config is not that of a model of this class.
    """
    try:
        return auto_class.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # a broken config may fail anywhere
        raise UserError(f"{folder}: expected the config.json of a model, got {reason(error)}") from error


def saved_labels(config: PretrainedConfig, folder: str) -> list[str]:
    """The labels in a saved config, in the order of their ids.

    Raises:
        UserError: ids that are not the numbers from 0 on, or a label that comes twice.
    """
    labels = config.id2label
    if sorted(labels) != list(range(len(labels))) or len(set(labels.values())) != len(labels):
        raise UserError(
            f"{folder}/config.json: id2label: expected each number from 0 on with a label of its own, got {labels!r}"
        )
    return [str(labels[number]) for number in range(len(labels))]


def label_settings(labels: Sequence[str]) -> dict[str, Any]:
    """The fields of a model's config that name the classes, for labels in the order of their ids."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


def _set_dropout(config: PretrainedConfig, dropout: float) -> None:
    fields = [field for field in ENCODER_DROPOUTS if hasattr(config, field)]
    if not fields:
        raise UserError(
            f"--dropout {dropout}: expected a model with one of {', '.join(ENCODER_DROPOUTS)} in its config, got "
            f"{config.model_type} with none; choose another --pretrained_model_name_or_path"
        )
    for field in fields:
        setattr(config, field, dropout)


def _draw_fresh_layers(model: PreTrainedModel, fresh: list[str]) -> None:
    """Draw the fresh linear layers anew as Glorot and Bengio (2010) do, so that logits are of the features' size.

    transformers draws them with a deviation of 0.02 whatever their shape, and PyTorch with 1/√(3H). Under a head that
    starts that small, the encoder moves the logits little at first, and three epochs end before it has caught up.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" in fresh:
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Encoder(nn.Module):
    """A transformers encoder that maps a packed batch to hidden states (T, H).

    Whether a model can run padding-free is not read from a list: at construction it encodes two short sentences one by
    one and packed. If the results agree, it runs packed from then on. If they do not (DeBERTa-v2, MPNet, RoFormer, and
    any model that mixes neighbouring tokens outside attention), the log says so, and its batches are padded inside,
    with the same result.

    Args:
        model: a model such as `AutoModel` gives, without a head on top.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        with_fast_dropout(model)
        self._first_position, self.max_length = _positions(model)
        takes_token_types = "token_type_ids" in inspect.signature(model.forward).parameters
        self._token_types = getattr(model.config, "type_vocab_size", 2) if takes_token_types else 0
        config = model.config
        self._head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.packed = self._try_packed()
        if not self.packed:
            logger.info("{} does not run padding-free; its batches are padded inside", type(model).__name__)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Encode a packed batch into hidden states (T, H)."""
        inputs = {"input_ids": batch.input_ids}
        if self._token_types:
            inputs["token_type_ids"] = batch.token_type_ids.clamp(max=self._token_types - 1)
        if self.packed:
            hidden = self.model(
                **{name: tensor[None] for name, tensor in inputs.items()},
                position_ids=batch.position_ids[None] + self._first_position,
                layout=layout_of(batch, self._dtype(), self._head_size),
            ).last_hidden_state  # (1, T, H)
            return hidden.squeeze(0)
        layout = BlockLayout.of(batch)
        padding = {"input_ids": self.model.config.pad_token_id or 0, "token_type_ids": 0}
        hidden = self.model(
            **{name: layout.pad(tensor, padding[name]) for name, tensor in inputs.items()},
            attention_mask=layout.mask.long(),
        ).last_hidden_state  # (N, L, H)
        return layout.unpad(hidden)

    def require_positions(self, max_seq_length: int) -> None:
        """Make sure that the model can take sentences of this many tokens.

        Raises:
            UserError: it has fewer positions.
        """
        if self.max_length is not None and max_seq_length > self.max_length:
            raise UserError(
                f"--max_seq_length {max_seq_length}: expected at most {self.max_length}, the positions that "
                f"{type(self.model).__name__} has"
            )

    def _dtype(self) -> torch.dtype:
        """The type that queries, keys and values will have."""
        device_type = self.model.device.type
        autocast = torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if autocast else self.model.dtype

    def _try_packed(self) -> bool:
        """Set the packed attention if the model then encodes each sentence as it does alone."""
        batch = trial_batch(self.model.config)
        with evaluating(self.model):
            expected = torch.cat(
                [self.model(input_ids=ids).last_hidden_state.squeeze(0) for ids in one_by_one(batch)]
            )  # (T, H)
            own_attention = self.model.config._attn_implementation
            self.model.set_attn_implementation(ATTENTION)
            self.packed = True
            if gives(expected, lambda: self(batch)):
                return True
            self.model.set_attn_implementation(own_attention)
            return False


def _positions(model: PreTrainedModel) -> tuple[int, int | None]:
    """The id of the first position, and how many tokens the model has positions for (None: no limit).

    RoBERTa's family counts positions from `pad_token_id + 1`, which its table of positions tells by a padding index.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return first, module.num_embeddings - first
    limit = getattr(model.config, "max_position_embeddings", None)
    return 0, limit if limit and limit > 0 else None
