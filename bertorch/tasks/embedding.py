"""What the tasks of sentence embeddings share: their inputs and results in use, and their saved folders."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Unpack

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel
from typing_extensions import override

from bertorch.config import POOLING_MODES
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset
from bertorch.data.texts import Columns
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.pretrained import empty_model
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.encoder.sentence_transformers import SentenceTransformerFiles
from bertorch.tasks.base import Inference, InputSettings, LoadedFolder, Savable
from bertorch.tasks.metrics import pair_cosines
from bertorch.tasks.scoring import ScoringTask


class EmbeddingTask(ScoringTask):
    """A task with a sentence encoder inside.

    Args:
        model: the whole model.
        embedder: gives embeddings (N, E); it is the model, or a part of it.
        prompt: prepended to each text in use.
        inputs: see `Task`.
    """

    pipeline_tag = "sentence-similarity"
    library = "sentence-transformers"
    has_cosine = True

    def __init__(
        self, model: EncoderModel, embedder: SentenceEncoder, *, prompt: str = "", **inputs: Unpack[InputSettings]
    ) -> None:
        super().__init__(model, **inputs)
        self._prompt = prompt
        self.embedder_model = embedder
        self.embedding_size = embedder.size

    @override
    def settings(self) -> Mapping[str, Any]:
        reduced = self.embedder_model.emb_reduce_linear
        size = None if reduced is None else reduced.out_features
        return {"pooling_mode": self.embedder_model.pooling_mode, "output_emb_size": size}

    @property
    @override
    def savables(self) -> list[Savable]:
        return [*super().savables, SentenceTransformerFiles(self.embedder_model, self.max_seq_length)]

    @property
    @override
    def num_texts(self) -> int:
        return 2

    @override
    def embedder(self, *, normalize: bool) -> Inference[str]:
        return Inference(len, self._examples, partial(self._embeddings, normalize=normalize), (self.embedding_size,))

    @override
    def _tokenized(self, columns: Columns, labels: np.ndarray) -> Dataset:
        if self._prompt:
            columns = [[self._prompt + text for text in column] for column in columns]
        return Dataset.of_sentences(self.tokenizer, columns, labels, max_length=self.max_seq_length)

    def _embeddings(self, batch: PackedBatch, *, normalize: bool) -> Tensor:
        vectors = self.embedder_model(batch).float()  # (N, E)
        return F.normalize(vectors) if normalize else vectors

    def _pairs(self, batch: PackedBatch) -> Tensor:
        return self.embedder_model(batch).float().view(-1, 2, self.embedding_size)  # (examples, 2, E)

    @override
    def _scores(self, batch: PackedBatch) -> Tensor:
        return pair_cosines(self._pairs(batch))[:, None]  # (examples, 1)

    @override
    def usage(self) -> tuple[str, str]:
        text = "房间干净，早餐也丰富。"
        elsewhere = "from sentence_transformers import SentenceTransformer\n\n"
        return f"encode([{text!r}])", elsewhere + f"print(SentenceTransformer({{folder}}).encode([{text!r}]))"


def empty_embedder(loaded: LoadedFolder) -> SentenceEncoder:
    """The sentence encoder of a saved folder, whose weights are still to be loaded."""
    metadata, folder = loaded.metadata, loaded.folder
    pooling_mode = metadata.setting("pooling_mode", POOLING_MODES, folder)
    model = empty_model(AutoModel, loaded.config, folder)
    return SentenceEncoder(model, pooling_mode, metadata.size("output_emb_size", folder))
