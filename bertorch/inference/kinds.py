"""The models of the five scripts, each with the methods of its task."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bertorch.data.batch import PackedBatch
from bertorch.data.dataset import Dataset
from bertorch.data.tagged_dataset import TaggedBatch, TaggedDataset
from bertorch.data.tagged_sentences import TaggedSentences
from bertorch.data.tags import TagSet
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.encoder.tagger import Tagger
from bertorch.errors import UserError
from bertorch.inference.engine import Job
from bertorch.inference.entities import SPLITS, Sentence, TaggedText, tagged
from bertorch.inference.model import Model, Origin, Text
from bertorch.tasks.siamese import SiameseClassifier

_FORM_OF_CLASSIFIER = {True: "pair", False: "text", None: "either"}


class TextClassifier(Model):
    """Of `run_classifier.py`.

    Args:
        origin: see `Model`.
        classifier: gives logits (N, C).
        labels: C of them.
    """

    def __init__(self, origin: Origin, classifier: SequenceClassifier, labels: Sequence[str]) -> None:
        super().__init__(origin)
        self._classifier = classifier
        self.labels = labels

    def scores(self, texts: Iterable[Text]) -> Iterator[tuple[list[Text], np.ndarray]]:
        """See `Model.scores`."""
        job = Job(_characters, self._examples, self._rows, (len(self.labels),))
        return self._engine.run(job, self._checked(texts, _FORM_OF_CLASSIFIER[self.description.text_pair]))

    def _examples(self, texts: Sequence[Text]) -> Dataset:
        columns, none = _columns(texts), np.zeros(len(texts))
        return Dataset.of_sequences(self._tokenizer, columns, none, max_length=self.description.max_seq_length)

    def _rows(self, batch: PackedBatch) -> Tensor:
        return self._classifier(batch).float().softmax(-1)  # (N, C)


class SentenceEmbedder(Model):
    """Of `run_simcse.py` and `run_batchneg.py`.

    Args:
        origin: see `Model`.
        embedder: gives embeddings (N, E).
    """

    def __init__(self, origin: Origin, embedder: SentenceEncoder) -> None:
        super().__init__(origin)
        self._embedder = embedder
        self.size = embedder.size

    def embeddings(self, texts: Iterable[str], *, normalize: bool) -> Iterator[tuple[list[str], np.ndarray]]:
        """See `Model.embeddings`."""
        job = Job(len, self._examples, partial(self._embeddings, normalize=normalize), (self.size,))
        return self._engine.run(job, self._checked(texts, "text"))

    def scores(self, texts: Iterable[Text]) -> Iterator[tuple[list[Text], np.ndarray]]:
        """See `Model.scores`."""
        job = Job(_characters, self._examples, self._scores, (len(self.labels) + 1,))
        return self._engine.run(job, self._checked(texts, "pair"))

    def _examples(self, texts: Sequence[Text]) -> Dataset:
        columns, none = _columns(texts), np.zeros(len(texts))
        return Dataset.of_sentences(self._tokenizer, columns, none, max_length=self.description.max_seq_length)

    def _embeddings(self, batch: PackedBatch, *, normalize: bool) -> Tensor:
        vectors = self._embedder(batch).float()  # (N, E)
        return F.normalize(vectors) if normalize else vectors

    def _scores(self, batch: PackedBatch) -> Tensor:
        return cosines(self._pairs(batch))[:, None]  # (examples, 1)

    def _pairs(self, batch: PackedBatch) -> Tensor:
        return self._embedder(batch).view(-1, 2, self.size)  # (examples, 2, E)


class SentenceBert(SentenceEmbedder):
    """Of `run_sentencebert.py`.

    Args:
        origin: see `Model`.
        siamese: gives logits (N, C) of pairs.
        labels: C of them.
    """

    def __init__(self, origin: Origin, siamese: SiameseClassifier, labels: Sequence[str]) -> None:
        super().__init__(origin, siamese.embedder)
        self._siamese = siamese
        self.labels = labels

    def _scores(self, batch: PackedBatch) -> Tensor:
        pairs = self._pairs(batch)
        probabilities = self._siamese.classify(pairs).float().softmax(-1)  # (examples, C)
        return torch.cat([probabilities, cosines(pairs)[:, None]], dim=1)


class EntityTagger(Model):
    """Of `run_ner.py`.

    Args:
        origin: see `Model`.
        tagger: with the CRF, if there is one.
        tags: and their scheme.
    """

    def __init__(self, origin: Origin, tagger: Tagger, tags: TagSet) -> None:
        super().__init__(origin)
        self._tagger = tagger
        self.tags = tags
        self.labels = tags.tags

    def taggings(
        self, texts: Iterable[str | Sequence[str]], *, split: str
    ) -> Iterator[tuple[list[Sentence], list[TaggedText]]]:
        """See `Model.taggings`."""
        for sentences, ids in self.tag_ids(texts, split=split):
            yield sentences, tagged(self.tags, sentences, ids)

    def tag_ids(
        self, texts: Iterable[str | Sequence[str]], *, split: str
    ) -> Iterator[tuple[list[Sentence], np.ndarray]]:
        """As `taggings`, as numbers: the tags (K,) of the tokens of all sentences, end to end."""
        if split not in SPLITS:
            raise UserError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        job = Job(_characters_of_tokens, self._examples, self._rows, dtype=torch.int64, by_word=True)
        return self._engine.run(job, (Sentence.of(text, split) for text in texts))

    def _examples(self, sentences: Sequence[Sentence]) -> TaggedDataset:
        tokens = [sentence.tokens for sentence in sentences]
        untagged = TaggedSentences(tokens, [np.zeros(len(each), dtype=np.int64) for each in tokens])
        return TaggedDataset.of(self._tokenizer, untagged, max_length=self.description.max_seq_length)

    def _rows(self, batch: TaggedBatch) -> Tensor:
        return self._tagger.decode(self._tagger(batch), batch)  # (K,)


def cosines(pairs: Tensor) -> Tensor:
    """The cosine of each pair of embeddings, (examples, 2, E) → (examples,), in fp32."""
    first, second = pairs.float().unbind(dim=1)
    return F.cosine_similarity(first, second)


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


def _characters_of_tokens(sentence: Sentence) -> int:
    return sum(map(len, sentence.tokens))


def _columns(texts: Sequence[Text]) -> list[list[str]]:
    """A list of texts, or two of the first and second texts of pairs."""
    columns = zip(*((text,) if isinstance(text, str) else text for text in texts), strict=True)
    return [list(column) for column in columns]
