"""From a file to a tokenised dataset, for each kind of training; with `--cache_dir` that is done once.

A reading function takes the path of a file, and as keywords everything else that its result depends on: the cache
(`bertorch.data.cache`) tells datasets apart by these keywords, so that no option can be forgotten there.
"""

from collections.abc import Callable, Sequence
from functools import partial

from transformers import PreTrainedTokenizerBase

from bertorch.config import TrainingConfig
from bertorch.data.cache import open_dataset
from bertorch.data.dataset import Dataset, Examples, split_off
from bertorch.data.readers import read_labelled_texts, read_pairs, read_scored_pairs, read_sentences
from bertorch.data.tagged_dataset import TaggedDataset
from bertorch.data.tagged_sentences import read_tagged_sentences
from bertorch.data.tags import TagSet


def training_and_dev(
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Callable[..., Examples],
    dev: Callable[..., Examples],
) -> tuple[Examples, Examples | None]:
    """Read and tokenise the files of a run, or open them from the folder of `--cache_dir`.

    Args:
        config: the run's options.
        tokenizer: the model's.
        train, dev: reading functions of this module, with the options bound that only they have.

    Returns:
        The training examples, and the dev examples: those of `--dev_data_file`, those that `--dev_ratio` splits off, or
        None without either.

    Raises:
        UserError: a file, an option or the folder is at fault.
    """
    shared = {"tokenizer": tokenizer, "max_length": config.max_seq_length, "on_bad_line": config.on_bad_line}
    examples = open_dataset(partial(train, **shared), config.train_data_file, config.cache_dir)
    if config.dev_ratio is not None:
        return split_off(examples, config.dev_ratio, seed=config.seed)
    if config.dev_data_file is None:
        return examples, None
    return examples, open_dataset(partial(dev, **shared), config.dev_data_file, config.cache_dir)


def texts_with_labels(
    path: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: Sequence[str],
    texts: int,
    on_bad_line: str,
) -> Dataset:
    """Texts or pairs with a class; the texts of a pair are encoded together. See `read_labelled_texts`."""
    read = read_labelled_texts(path, labels, num_texts=texts, on_bad_line=on_bad_line)
    return Dataset.of_sequences(tokenizer, read.columns, read.labels, max_length=max_length)


def pairs_with_labels(
    path: str, *, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: Sequence[str], on_bad_line: str
) -> Dataset:
    """Pairs with a class, whose texts are encoded apart. See `read_labelled_texts`."""
    read = read_labelled_texts(path, labels, num_texts=2, on_bad_line=on_bad_line)
    return Dataset.of_sentences(tokenizer, read.columns, read.labels, max_length=max_length)


def pairs_with_scores(path: str, *, tokenizer: PreTrainedTokenizerBase, max_length: int, on_bad_line: str) -> Dataset:
    """Pairs with a score, whose texts are encoded apart. See `read_scored_pairs`."""
    read = read_scored_pairs(path, on_bad_line=on_bad_line)
    return Dataset.of_sentences(tokenizer, read.columns, read.labels, max_length=max_length)


def sentences_twice(path: str, *, tokenizer: PreTrainedTokenizerBase, max_length: int, on_bad_line: str) -> Dataset:
    """Each sentence with itself as its positive. See `read_sentences`."""
    sentences = read_sentences(path, on_bad_line=on_bad_line)
    return Dataset.of_sentences(tokenizer, (sentences, sentences), max_length=max_length)


def anchors_with_positives(
    path: str, *, tokenizer: PreTrainedTokenizerBase, max_length: int, on_bad_line: str
) -> Dataset:
    """Anchors, positives, and hard negatives if there are any. See `read_pairs`."""
    return Dataset.of_sentences(tokenizer, read_pairs(path, on_bad_line=on_bad_line), max_length=max_length)


def sentences_with_tags(
    path: str, *, tokenizer: PreTrainedTokenizerBase, max_length: int, tags: TagSet, strict: bool, on_bad_line: str
) -> TaggedDataset:
    """Sentences with a tag for each token. See `read_tagged_sentences`."""
    sentences = read_tagged_sentences(path, tags, strict=strict, on_bad_line=on_bad_line)
    return TaggedDataset.of(tokenizer, sentences, max_length=max_length)
