"""What the tasks of sentence embeddings share: their inputs and results in use, retrieval, their saved folders."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel
from typing_extensions import override

from bertorch.config import POOLING_MODES
from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset, Examples, TextRows
from bertorch.data.prompts import NO_PROMPTS, Prompts
from bertorch.data.readers import LabelledTexts, stream_texts
from bertorch.data.retrieval import RetrievalTexts, read_retrieval_files, retrieval_form
from bertorch.data.retrieval_dataset import RetrievalDataset
from bertorch.data.texts import Columns
from bertorch.encoder.encoder_model import EncoderModel
from bertorch.encoder.onnx_model import OnnxModel
from bertorch.encoder.pretrained import empty_model
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.encoder.sentence_transformers import SentenceTransformerFiles
from bertorch.errors import UserError
from bertorch.tasks.agreement import Agreement, mean_cosine
from bertorch.tasks.base import Errors, Inference, InputSettings, LoadedFolder, Losses, Savable
from bertorch.tasks.matryoshka import SETTING, MatryoshkaMetric, all_widths, mean_over_widths, of_whole
from bertorch.tasks.metrics import Metric, pair_cosines
from bertorch.tasks.retrieval import not_found_first
from bertorch.tasks.retrieval_metric import RetrievalMetric
from bertorch.tasks.scoring import ScoringTask

PROMPT_SETTINGS = ("query_prompt", "passage_prompt")  # of a saved folder


class EmbeddingTask(ScoringTask):
    """A task with a sentence encoder inside.

    Args:
        model: the whole model.
        embedder: gives embeddings (N, E); it is the model, or a part of it.
        prompts: of its texts, by their roles.
        matryoshka: the widths at which it is trained beside the whole, see `bertorch.tasks.matryoshka`.
        inputs: see `Task`.
    """

    pipeline_tag = "sentence-similarity"
    library = "sentence-transformers"
    has_cosine = True

    def __init__(
        self,
        model: EncoderModel,
        embedder: SentenceEncoder | OnnxModel,
        *,
        prompts: Prompts = NO_PROMPTS,
        matryoshka: Sequence[int] = (),
        **inputs: Unpack[InputSettings],
    ) -> None:
        super().__init__(model, **inputs)
        self.prompts = prompts
        self.embedder_model = embedder
        self.embedding_size = embedder.size
        self.embedding_widths = all_widths(matryoshka, embedder.size)

    @abstractmethod
    def losses_at(self, embeddings: Tensor, batch: PackedBatch) -> Losses:
        """The parts of the loss, from `outputs` or the first dimensions of each embedding in them."""

    @abstractmethod
    def metric_at(self, device: torch.device) -> Metric[PackedBatch]:
        """A fresh metric, which takes `outputs`, or the first dimensions of each embedding in them."""

    @abstractmethod
    def errors_of(self, metric: Any, source: LabelledTexts) -> Errors:
        """The wrong examples of labelled pairs, from a metric of `metric_at`."""

    @override
    def losses_of(self, outputs: Tensor, batch: PackedBatch) -> Losses:
        return mean_over_widths(self.losses_at, outputs, batch, self.embedding_widths)

    @override
    def metric(self, device: torch.device) -> Metric[PackedBatch]:
        return self._at_widths(lambda _: self.metric_at(device))

    @override
    def evaluation(
        self, examples: Examples, device: torch.device
    ) -> tuple[Callable[[PackedBatch], Tensor], Metric[PackedBatch]]:
        if not isinstance(examples, RetrievalDataset):
            return super().evaluation(examples, device)
        size = self.embedding_size  # of narrower ones the cosines may be all the same: with one dimension, often are
        return self.embedder_model, self._at_widths(
            lambda width: RetrievalMetric(device, examples, width, may_be_constant=width < size)
        )

    def _at_widths(self, make: Callable[[int], Metric[PackedBatch]]) -> Metric[PackedBatch]:
        """A metric of whole embeddings, or of each width at which they are trained; `make` takes a width."""
        widths = self.embedding_widths
        return MatryoshkaMetric({width: make(width) for width in widths}) if widths else make(self.embedding_size)

    @override
    def errors(self, metric: Any, source: Any) -> Errors:
        """The pairs that `errors_of` finds, or the queries whose first passage is not relevant."""
        whole = of_whole(metric)
        return not_found_first(whole, source) if isinstance(source, RetrievalTexts) else self.errors_of(whole, source)

    @override
    def settings(self) -> Mapping[str, Any]:
        prompts = dict(zip(PROMPT_SETTINGS, self.prompts, strict=False))
        return {
            "pooling_mode": self.embedder_model.pooling_mode,
            "output_emb_size": self.embedder_model.output_emb_size,
            **({SETTING: list(self.embedding_widths)} if self.embedding_widths else {}),
            **{name: prompt for name, prompt in prompts.items() if prompt},
        }

    @property
    @override
    def savables(self) -> list[Savable]:
        assert isinstance(self.embedder_model, SentenceEncoder), "a graph is not saved"
        return [*super().savables, SentenceTransformerFiles(self.embedder_model, self.max_seq_length, self.prompts)]

    @property
    @override
    def num_texts(self) -> int:
        return 2

    @override
    def embedder(self, *, normalize: bool, dimensions: int | None = None, role: str | None = None) -> Inference[str]:
        self.prompts.before(role)  # raises
        size = self.embedding_size if dimensions is None else dimensions
        if not 0 < size <= self.embedding_size:
            raise UserError(f"dimensions: expected 1 to the {self.embedding_size} of an embedding, got {size}")
        rows_of = partial(self._embeddings, size=size, normalize=normalize or dimensions is not None)
        return Inference(len, partial(self._texts, role=role), rows_of, (size,))

    @override
    def prompts_of_columns(self, count: int) -> Sequence[str]:
        return self.prompts.before_columns(count)

    @override
    def agreement(self) -> Agreement:
        if self.label_names:
            return super().agreement()
        role = "query" if self.prompts.by_role else None

        def read(path: str) -> Iterator[str]:
            return (text for (text,) in stream_texts(path, num_texts=1))

        return Agreement(self.embedder(normalize=True, role=role), lambda texts: texts, read, mean_cosine)

    def _texts(self, texts: Sequence[str], *, role: str | None) -> TextRows:
        columns = [self.prompts.prepended(texts, role)]
        return TextRows.tokenized(self.tokenizer, columns, max_length=self.max_seq_length)

    @override
    def _tokenized(self, columns: Columns, labels: np.ndarray) -> Dataset:
        columns = self.prompts.of_pairs(columns)
        return Dataset.of_sentences(self.tokenizer, columns, labels, max_length=self.max_seq_length)

    @override
    def read_labelled(self, path: str, on_bad_line: str) -> tuple[Any, Examples]:
        form = retrieval_form(path)
        if form is None:
            return super().read_labelled(path, on_bad_line)
        return self._searched(form.read(path, on_bad_line=on_bad_line))

    @override
    def read_retrieval(self, files: Sequence[str], on_bad_line: str) -> tuple[RetrievalTexts, Examples]:
        corpus, queries, qrels = files
        return self._searched(read_retrieval_files(corpus, queries, qrels, on_bad_line=on_bad_line))

    def _searched(self, read: RetrievalTexts) -> tuple[RetrievalTexts, RetrievalDataset]:
        self.embedder(normalize=True, role="query")  # raises: several models have no embeddings together
        prompts, max_length = self.prompts, self.max_seq_length
        return read, RetrievalDataset.of(self.tokenizer, read, prompts=prompts, max_length=max_length)

    def _embeddings(self, batch: PackedBatch, *, size: int, normalize: bool) -> Tensor:
        vectors = self.embedder_model(batch)[:, :size].float()  # (N, size)
        return F.normalize(vectors) if normalize else vectors

    def _pairs(self, batch: PackedBatch) -> Tensor:
        return self.embedder_model(batch).float().view(-1, 2, self.embedding_size)  # (examples, 2, E)

    @override
    def _scores(self, batch: PackedBatch) -> Tensor:
        return pair_cosines(self._pairs(batch))[:, None]  # (examples, 1)

    @override
    def usage(self) -> tuple[str, str]:
        text, widths = "房间干净，早餐也丰富。", self.embedding_widths
        elsewhere = "from sentence_transformers import SentenceTransformer\n\n"
        prompt, method = (', prompt="query"', "encode_query") if self.prompts.by_role else ("", "encode")
        if not widths:
            call = f"SentenceTransformer({{folder}}).{method}([{text!r}])"
            return f"encode([{text!r}]{prompt})", elsewhere + f"print({call})"
        elsewhere += f"# trained at {', '.join(map(str, widths))} dimensions\n"
        elsewhere += f"model = SentenceTransformer({{folder}}, truncate_dim={widths[-1]})\n"
        elsewhere += f"print(model.{method}([{text!r}], normalize_embeddings=True))"
        return f"encode([{text!r}]{prompt}, dimensions={widths[-1]})", elsewhere


def saved_prompts(loaded: LoadedFolder) -> Prompts:
    """The prompts of a saved folder; a `UserError` if one is no text."""
    query, passage = (loaded.metadata.text(name, loaded.folder) for name in PROMPT_SETTINGS)
    return Prompts.of_roles(query, passage)


def empty_embedder(loaded: LoadedFolder) -> SentenceEncoder | OnnxModel:
    """The sentence encoder of a saved folder, whose weights are still to be loaded, or the graph that stands for it."""
    metadata, folder = loaded.metadata, loaded.folder
    pooling_mode = metadata.setting("pooling_mode", POOLING_MODES, folder)
    output_emb_size = metadata.size("output_emb_size", folder)
    if loaded.graph is not None:
        loaded.graph.pooling_mode, loaded.graph.output_emb_size = pooling_mode, output_emb_size
        return loaded.graph
    return SentenceEncoder(empty_model(AutoModel, loaded.config, folder), pooling_mode, output_emb_size)
