"""Sentence-BERT: a classifier over the embeddings of two sentences."""

import torch
from torch import Tensor, nn

from bertorch.data.batch import PackedBatch
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.sentence_encoder import SentenceEncoder


class SiameseClassifier(EncoderModel):
    """Classifies sentence pairs by a linear layer over (u, v, |u−v|), or (u, v, |u−v|, u·v element-wise).

    Both sentences of all pairs are encoded in one call.

    References:
        Reimers and Gurevych, Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks, EMNLP 2019.

    Args:
        embedder: gives u and v, (E,) each.
        labels: C, the number of classes.
        concat_multiply: whether the classifier also sees u·v.
    """

    pipeline_tag = "sentence-similarity"

    def __init__(self, embedder: SentenceEncoder, labels: int, *, concat_multiply: bool = False) -> None:
        super().__init__()
        self.embedder = embedder
        self.concat_multiply = concat_multiply
        self.classifier = nn.Linear((4 if concat_multiply else 3) * embedder.size, labels)

    @property
    def encoder_prefix(self) -> str:
        """The encoder's name within `weights`, such as `bert`."""
        return self.embedder.encoder_prefix

    @property
    def weights(self) -> nn.ModuleDict:
        """What is saved and warm-started: the embedder's weights and `classifier.…`."""
        weights = self.embedder.weights
        weights["classifier"] = self.classifier
        return weights

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits (examples, C) of a packed batch with the two sentences of each example one after the other."""
        return self.classify(self.embedder(batch).view(-1, 2, self.embedder.size))

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logits (examples, C) of the embeddings of pairs, (examples, 2, E)."""
        u, v = embeddings.unbind(dim=1)  # (examples, E) each
        features = [u, v, (u - v).abs()]
        if self.concat_multiply:
            features.append(u * v)
        return self.classifier(torch.cat(features, dim=-1))
