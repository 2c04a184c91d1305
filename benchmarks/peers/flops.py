"""The arithmetic that a step needs, whoever takes it: padding is no work."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModel

from bertorch.data.dataset import TextRows
from bertorch.encoder.pretrained import load_config


@dataclass(frozen=True)
class Work:
    """What a step has to do, as the mean over the steps of a run.

    Attributes:
        tokens: of all its texts.
        flops: floating-point operations of forward and backward.
    """

    tokens: float
    flops: float

    @classmethod
    def of(cls, examples: TextRows, steps: int, model: str) -> "Work":
        """Count.

        A token takes 2 operations for each weight that it meets in the forward pass and 4 in the backward pass; the
        scores of attention and the sums that they weigh take 4·H·n² a layer in the forward pass over a text of n
        tokens, and twice that in the backward pass.

        References:
            Chowdhery et al., PaLM: Scaling Language Modeling with Pathways, 2022, appendix B.

        Args:
            examples: of the whole run.
            steps: of it.
            model: hub name or local folder of the encoder.
        """
        config = load_config(model)
        lengths = examples.store.lengths_of(examples.sentences.ravel()).astype(np.float64)  # (N,)
        tokens = float(lengths.sum())
        attention = 12 * config.num_hidden_layers * config.hidden_size * float((lengths**2).sum())
        return cls(tokens / steps, (6 * _weights_of_layers(model) * tokens + attention) / steps)


def _weights_of_layers(model: str) -> int:
    """The number of an encoder's parameters without embeddings and pooler, which not every token meets."""
    with torch.device("meta"):
        encoder = AutoModel.from_config(load_config(model))
    left_out = ("embeddings.", "pooler.")
    return sum(weight.numel() for name, weight in encoder.named_parameters() if not name.startswith(left_out))
