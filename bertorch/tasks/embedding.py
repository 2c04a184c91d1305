"""What the tasks of sentence embeddings share: their inputs and results in use, and their saved folders."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel
from typing_extensions import override

from bertorch.config import POOLING_MODES
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset, TextRows
from bertorch.data.prompts import NO_PROMPTS, Prompts
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
        prompts: of its texts, by their roles.
        inputs: see `Task`.
    """

    pipeline_tag = "sentence-similarity"
    library = "sentence-transformers"

    def __init__(
        self,
        model: EncoderModel,
        embedder: SentenceEncoder,
        *,
        prompts: Prompts = NO_PROMPTS,
        **inputs: Unpack[InputSettings],
    ) -> None:
        super().__init__(model, **inputs)
        self.prompts = prompts
        self.embedder_model = embedder
        self.embedding_size = embedder.size

    @override
    def settings(self) -> Mapping[str, Any]:
        reduced = self.embedder_model.emb_reduce_linear
        size = None if reduced is None else reduced.out_features
        prompts = {"query_prompt": self.prompts.query, "passage_prompt": self.prompts.passage}
        return {
            "pooling_mode": self.embedder_model.pooling_mode,
            "output_emb_size": size,
            **{name: prompt for name, prompt in prompts.items() if prompt},
        }

    @property
    @override
    def savables(self) -> list[Savable]:
        return [*super().savables, SentenceTransformerFiles(self.embedder_model, self.max_seq_length, self.prompts)]

    @property
    @override
    def num_texts(self) -> int:
        return 2

    @override
    def embedder(self, *, normalize: bool, role: str | None = None) -> Inference[str]:
        self.prompts.before(role)  # raises
        embeddings = partial(self._embeddings, normalize=normalize)
        return Inference(len, partial(self._texts, role=role), embeddings, (self.embedding_size,))

    def _texts(self, texts: Sequence[str], *, role: str | None) -> TextRows:
        columns = [self.prompts.prepended(texts, role)]
        return TextRows.tokenized(self.tokenizer, columns, max_length=self.max_seq_length)

    @override
    def _tokenized(self, columns: Columns, labels: np.ndarray) -> Dataset:
        columns = self.prompts.of_pairs(columns)
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
        prompt, method = (', prompt="query"', "encode_query") if self.prompts.by_role else ("", "encode")
        return f"encode([{text!r}]{prompt})", elsewhere + f"print(SentenceTransformer({{folder}}).{method}([{text!r}]))"


def saved_prompts(loaded: LoadedFolder) -> Prompts:
    """The prompts of a saved folder; a `UserError` if one is no text."""
    query, passage = (loaded.metadata.text(name, loaded.folder) for name in ("query_prompt", "passage_prompt"))
    return Prompts.of_roles(query, passage)


def empty_embedder(loaded: LoadedFolder) -> SentenceEncoder:
    """The sentence encoder of a saved folder, whose weights are still to be loaded."""
    metadata, folder = loaded.metadata, loaded.folder
    pooling_mode = metadata.setting("pooling_mode", POOLING_MODES, folder)
    model = empty_model(AutoModel, loaded.config, folder)
    return SentenceEncoder(model, pooling_mode, metadata.size("output_emb_size", folder))
