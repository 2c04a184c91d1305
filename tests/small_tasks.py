"""Small tasks of every kind, with random data for them: what tests of training build their runs from."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertorch.data.dataset import Dataset, TextRows
from bertorch.data.retrieval_dataset import RetrievalDataset
from bertorch.data.span_dataset import SpanDataset
from bertorch.data.tagged_dataset import TaggedDataset
from bertorch.data.tags import TagSet
from bertorch.data.windowed_dataset import WindowedDataset
from bertorch.encoder.classifier import SequenceClassifier
from bertorch.encoder.sentence_encoder import SentenceEncoder
from bertorch.tasks.class_losses import ClassLoss
from bertorch.tasks.classification import ClassificationTask
from bertorch.tasks.contrastive import ContrastiveTask
from bertorch.tasks.cosent import CoSENT
from bertorch.tasks.embedding_loss import EmbeddingLoss
from bertorch.tasks.global_pointer_head import GlobalPointerTagger
from bertorch.tasks.in_batch_negatives import InBatchNegatives
from bertorch.tasks.multi_label import MultiLabelTask
from bertorch.tasks.ranking import RankingTask
from bertorch.tasks.score import ScoreTask
from bertorch.tasks.sentence_bert import SentenceBertTask, SiameseClassifier
from bertorch.tasks.tagging import HEADS, TaggingTask
from tests.architectures import random_store, small_classifier, small_config, small_encoder, small_tagging_model
from tests.conftest import TINY

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
TAGS = TagSet(["O", "B-PER", "I-PER", "S-PER", "B-LOC"], "bios", "labels.txt")
CONTRASTIVE = {"margin": 0.2, "scale": 20.0, "symmetric": True}


def classification_task(architecture: str = "bert", **settings: object) -> ClassificationTask:
    """Three classes; the settings are those of the encoder's configuration, here and below."""
    return ClassificationTask(SequenceClassifier(small_classifier(architecture, **settings)), ["a", "b", "c"])


def multi_label_task(loss_name: str = "bce", **settings: object) -> MultiLabelTask:
    """Three labels, any of which may hold."""
    return MultiLabelTask(
        SequenceClassifier(small_classifier("bert", **settings)), ["a", "b", "c"], loss_name=loss_name
    )


def _one_logit(**settings: object) -> SequenceClassifier:
    torch.manual_seed(0)
    config = small_config("bert", num_labels=1, **settings)
    return SequenceClassifier(AutoModelForSequenceClassification.from_config(config))


def score_task(**settings: object) -> ScoreTask:
    return ScoreTask(_one_logit(**settings), text_pair=True)


def ranking_task(**settings: object) -> RankingTask:
    return RankingTask(_one_logit(**settings), text_pair=True)


def windowed_task(**settings: object) -> ClassificationTask:
    model = SequenceClassifier(small_classifier("bert", **settings))
    return ClassificationTask(model, ["a", "b", "c"], windows=3)


def weighted_task(**settings: object) -> ClassificationTask:
    """Three classes that weigh differently in the loss, with label smoothing."""
    model = SequenceClassifier(small_classifier("bert", **settings))
    loss = ClassLoss(weights=np.array([0.25, 1.5, 4.0]), smoothing=0.1)
    return ClassificationTask(model, ["a", "b", "c"], class_loss=loss)


def siamese_task(
    pooling_mode: str = "linear", *, matryoshka: Sequence[int] = (), **settings: object
) -> SentenceBertTask:
    encoder = SentenceEncoder(small_encoder("bert", **settings), pooling_mode)
    torch.manual_seed(1)
    model = SiameseClassifier(encoder, 3, concat_multiply=True)
    return SentenceBertTask(model, ["a", "b", "c"], matryoshka=matryoshka)


def contrastive_task(
    *,
    gather: bool = False,
    keep_duplicates: bool = False,
    **settings: object,
) -> ContrastiveTask:
    """In-batch negatives; the settings are those of `embedding_task`."""
    loss = InBatchNegatives(gather_negatives=gather, keep_duplicates=keep_duplicates, **CONTRASTIVE)
    return embedding_task(loss, **settings)


def embedding_task(
    loss: EmbeddingLoss,
    *,
    micro_batch_size: int | None = None,
    pooling_mode: str = "mean",
    matryoshka: Sequence[int] = (),
    **settings: object,
) -> ContrastiveTask:
    model = SentenceEncoder(small_encoder("bert", **settings), pooling_mode, output_emb_size=8)
    torch.manual_seed(3)
    torch.nn.init.normal_(model.emb_reduce_linear.weight)
    return ContrastiveTask(model, loss=loss, micro_batch_size=micro_batch_size, matryoshka=matryoshka)


def cosent_task(scale: float = 20.0, **settings: object) -> ContrastiveTask:
    return embedding_task(CoSENT(scale=scale), **settings)


def tagging_task(*, use_crf: bool, **settings: object) -> TaggingTask:
    head = "crf" if use_crf else "linear"
    torch.manual_seed(1)
    return TaggingTask(HEADS[head](small_tagging_model("bert", **settings), TAGS), head, head_learning_rate=1e-2)


def tiny_classification_task(label_names: list[str]) -> ClassificationTask:
    """On the embedded checkpoint, with all that a saved folder holds."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    task = ClassificationTask.from_pretrained(str(TINY), tokenizer, label_names, text_pair=False, max_seq_length=128)
    task.model.eval()
    return task


def tiny_tagging_task(*, use_crf: bool) -> TaggingTask:
    """On the embedded checkpoint, with all that a saved folder holds."""
    torch.manual_seed(0)
    task = TaggingTask.from_pretrained(
        str(TINY),
        AutoTokenizer.from_pretrained(TINY),
        TAGS,
        head="crf" if use_crf else "linear",
        constrain_training=False,
        head_learning_rate=1e-3,
        max_seq_length=128,
    )
    task.model.eval()
    return task


def global_pointer_task(decoding: str = "nested", **settings: object) -> TaggingTask:
    """A head of 8 dimensions, which finds entities from the start."""
    encoder = small_encoder("bert", **settings)
    torch.manual_seed(1)
    model = GlobalPointerTagger(encoder, TAGS, decoding=decoding, head_size=8)
    torch.nn.init.constant_(model.global_pointer.bounds.bias, -0.5)
    return TaggingTask(model, "global_pointer", head_learning_rate=1e-2)


def tiny_global_pointer_task(decoding: str = "nested") -> TaggingTask:
    """On the embedded checkpoint, with all that a saved folder holds; it finds entities from the start."""
    torch.manual_seed(0)
    task = TaggingTask.from_pretrained(
        str(TINY),
        AutoTokenizer.from_pretrained(TINY),
        TAGS,
        head="global_pointer",
        head_learning_rate=1e-3,
        max_seq_length=128,
        decoding=decoding,
        head_size=16,
    )
    torch.nn.init.constant_(task.span_model.global_pointer.bounds.bias, -0.5)
    task.model.eval()
    return task


def classification_data(size: int, seed: int = 0) -> Dataset:
    """Sentences whose class depends on their first token."""
    store = random_store(size, seed)
    return Dataset(store, np.arange(size)[:, None], labels=store.input_ids[store.offsets[:-1]].astype(np.int64) % 3)


def multi_label_data(size: int, seed: int = 0) -> Dataset:
    """Sentences whose labels depend on their first token; some have none."""
    store = random_store(size, seed)
    first = store.input_ids[store.offsets[:-1]].astype(np.int64)[:, None]  # (size, 1)
    return Dataset(store, np.arange(size)[:, None], labels=(first >> np.arange(3) & 1).astype(np.uint8))


def score_data(size: int, seed: int = 0) -> Dataset:
    """Sentences whose score depends on their first token."""
    data = classification_data(size, seed)
    return Dataset(data.store, data.sentences, data.labels / 2)


def group_data(groups: int, width: int = 4) -> Dataset:
    """Groups of `width` sentences, of which the first is right."""
    sentences = np.arange(groups * width).reshape(groups, width)
    return Dataset(random_store(groups * width), sentences, labels=np.zeros(groups, np.int64))


def candidate_data(size: int, queries: int) -> Dataset:
    """Candidates of several queries in turn, some of them relevant, at least one of each query."""
    numbers = np.arange(size) % queries
    relevances = np.where(np.arange(size) < queries, 2.0, np.arange(size) % 3 == 0)
    return Dataset(random_store(size), np.arange(size)[:, None], np.stack([relevances, numbers], axis=1))


def windowed_data(size: int, seed: int = 0) -> WindowedDataset:
    """Texts of one to three windows, whose class depends on the first token of the last one."""
    counts = np.random.default_rng(seed).integers(1, 4, size)
    offsets = np.concatenate([[0], counts]).cumsum()
    store = random_store(int(offsets[-1]), seed)
    labels = store.input_ids[store.offsets[offsets[1:] - 1]].astype(np.int64) % 3
    return WindowedDataset(store, np.arange(size)[:, None], labels, offsets)


def pair_data(pairs: int = 17, texts: int = 20) -> Dataset:
    """Pairs of three classes, in which some texts occur several times."""
    sentences = np.random.default_rng(0).integers(0, texts, (pairs, 2))
    return Dataset(random_store(texts), sentences, labels=sentences.sum(axis=1) % 3)


def scored_pair_data(pairs: int, texts: int = 20, scores: int = 4) -> Dataset:
    """Pairs with one of a few scores, in which some texts occur several times."""
    sentences = np.random.default_rng(0).integers(0, texts, (pairs, 2))
    return Dataset(random_store(texts), sentences, labels=(sentences.sum(axis=1) % scores) / 2)


def contrastive_data(rows: int, width: int = 2, texts: int | None = None) -> TextRows:
    """Rows of `width` texts; with fewer `texts` than that takes, some occur several times."""
    texts = texts or rows * width
    sentences = np.random.default_rng(0).permutation(np.arange(rows * width) % texts).reshape(rows, width)
    return TextRows(random_store(texts), sentences)


def own_positives(rows: int) -> TextRows:
    """Each sentence is its own positive, as in SimCSE."""
    sentences = np.repeat(np.arange(rows)[:, None], 2, axis=1)
    return TextRows(random_store(rows), sentences)


def tagged_data(examples: int, windows: int = 1) -> TaggedDataset:
    """Examples of `windows` windows each, in which every token but the first and the last is a word."""
    store = random_store(examples * windows)
    words = store.lengths - 2
    starts = np.concatenate([np.arange(1, 1 + count) for count in words])
    first = np.concatenate([[0], words]).cumsum()
    inner = np.concatenate(
        [store.input_ids[a + 1 : b - 1] for a, b in zip(store.offsets, store.offsets[1:], strict=False)]
    )
    return TaggedDataset(
        store, starts, first, np.arange(0, examples * windows + 1, windows), inner.astype(np.int64) % len(TAGS)
    )


def entity_data(examples: int, windows: int = 1) -> SpanDataset:
    """The sentences of `tagged_data`; three of four are an entity as a whole, with one of a word inside."""
    tagged = tagged_data(examples, windows)
    spans, counts = [], []
    for index in range(examples):
        tags = tagged.labels_of(np.array([index]))
        inner = 1 + int(tags.sum()) % max(len(tags) - 1, 1)
        found = [
            (0, len(tags), int(tags[0]) % 2),
            *([(inner, inner + 1, int(tags[-1]) % 2)] if inner < len(tags) else []),
        ]
        spans += found if index % 4 else []
        counts.append(len(found) if index % 4 else 0)
    words = (tagged.store, tagged.word_starts, tagged.word_offsets, tagged.examples)
    return SpanDataset(*words, np.array(spans, np.int64), np.concatenate([[0], counts]).cumsum())


def retrieval_data(texts: int = 30, queries: int = 6, seed: int = 0) -> RetrievalDataset:
    """Queries among the texts, and passages: the other texts, some of them twice, and the first query itself."""
    random = np.random.default_rng(seed)
    passages = random.permutation(np.concatenate([np.arange(queries, texts), np.arange(queries, queries + 5), [0]]))
    own = np.full(queries, -1)
    own[0] = np.flatnonzero(passages == 0)[0]
    relevant = np.stack([np.arange(queries).repeat(3), random.integers(0, len(passages), 3 * queries)], axis=1)
    relevant = np.unique(relevant[relevant[:, 1] != own[0]], axis=0)
    grades = 1.0 + random.integers(0, 3, len(relevant))
    store, is_kept = random_store(texts, seed), np.ones(queries, np.bool_)
    return RetrievalDataset(
        store, np.arange(texts)[:, None], np.arange(queries), passages, own, relevant, grades, is_kept
    )
