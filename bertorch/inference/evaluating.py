"""What a trained model makes of a labelled file: the numbers of the report, and the mistakes."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from bertorch.data.readers import LabelledTexts, has_pairs, read_labelled_texts, read_scored_pairs
from bertorch.data.tagged_sentences import TaggedSentences, read_tagged_sentences
from bertorch.inference.entities import entities_in, joined
from bertorch.inference.kinds import EntityTagger
from bertorch.inference.model import Model
from bertorch.inference.scores import Span, best_threshold, class_report, entity_report
from bertorch.training.metrics import pearson, spearman


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        report: as JSON has it.
        header: names of the columns of `mistakes`.
        mistakes: a row for each.
    """

    report: dict[str, Any]
    header: list[str]
    mistakes: list[list[str]]


def evaluate_classes(model: Model, path: str, on_bad_line: str) -> Evaluation:
    """Of a classifier or Sentence-BERT, on `text⇥label` or `a⇥b⇥label` lines.

    Sentence-BERT also gets the best thresholds of the cosine: of two labels those of the second, of more those of each
    against all others.

    Raises:
        UserError: the file is at fault.
    """
    pairs = model.description.embeds or model.description.text_pair
    if pairs is None:
        pairs = has_pairs(path)
    data = read_labelled_texts(path, model.labels, num_texts=1 + pairs, on_bad_line=on_bad_line)
    scores = _scores(model, data)
    probabilities = scores[:, : len(model.labels)]
    predicted = probabilities.argmax(axis=1)
    report = class_report(data.labels, predicted, model.labels)
    if model.description.embeds:
        positives = range(1, 2) if len(model.labels) == 2 else range(len(model.labels))
        thresholds = {
            model.labels[number]: best_threshold(scores[:, -1], data.labels == number) for number in positives
        }
        report["cosine"] = {"thresholds": thresholds}
        if len(model.labels) == 2:
            report["cosine"] |= _correlations(scores[:, -1], data.labels)
    header = ["number", "label", "predicted", "probability", "a", "b"][: 5 + pairs]
    mistakes = [
        [
            str(number + 1),
            model.labels[data.labels[number]],
            model.labels[predicted[number]],
            f"{probabilities[number].max():.6f}",
            *(column[number] for column in data.columns),
        ]
        for number in np.flatnonzero(predicted != data.labels)
    ]
    return Evaluation(report, header, mistakes)


def evaluate_similarity(model: Model, path: str, on_bad_line: str) -> Evaluation:
    """Of a model of sentence embeddings, on `a⇥b⇥score` lines.

    Where the scores are 0 and 1, also the best thresholds of the cosine; the mistakes are those of the one that is best
    by accuracy.

    Raises:
        UserError: the file is at fault.
    """
    data = read_scored_pairs(path, on_bad_line=on_bad_line)
    cosines = _scores(model, data)[:, -1]
    report: dict[str, Any] = {"examples": len(data), **_correlations(cosines, data.labels)}
    mistakes: list[list[str]] = []
    if set(data.labels) == {0.0, 1.0}:
        positive = data.labels == 1
        report["threshold"] = best_threshold(cosines, positive)
        taken = cosines >= report["threshold"]["accuracy_threshold"]
        mistakes = [
            [
                str(number + 1),
                str(int(positive[number])),
                str(int(taken[number])),
                f"{cosines[number]:.6f}",
                *(column[number] for column in data.columns),
            ]
            for number in np.flatnonzero(taken != positive)
        ]
    return Evaluation(report, ["number", "label", "predicted", "cosine", "a", "b"], mistakes)


def evaluate_entities(model: EntityTagger, path: str, on_bad_line: str) -> Evaluation:
    """Of a tagger, on JSON lines with tokens and tags; a mistake is a sentence whose entities are not all right.

    Raises:
        UserError: the file is at fault.
    """
    data = read_tagged_sentences(path, model.tags, on_bad_line=on_bad_line)
    predicted = np.concatenate([ids for _, ids in model.tag_ids(data.tokens, split="characters")])
    gold_of, predicted_of = (_spans(model, data, ids) for ids in (np.concatenate(data.tags), predicted))
    report = entity_report(list(chain(*gold_of)), list(chain(*predicted_of)), model.tags.types)
    mistakes = [
        [str(number + 1), *(_told(spans, tokens) for spans in (gold, found)), joined(tokens)]
        for number, (tokens, gold, found) in enumerate(zip(data.tokens, gold_of, predicted_of, strict=True))
        if gold != found
    ]
    tokens_right = float((predicted == np.concatenate(data.tags)).mean())
    report = {"examples": len(data), "token_accuracy": tokens_right, **report}
    return Evaluation(report, ["number", "entities", "predicted", "text"], mistakes)


def _scores(model: Model, data: LabelledTexts) -> np.ndarray:
    texts = data.columns[0] if len(data.columns) == 1 else zip(*data.columns, strict=True)
    return np.concatenate([rows for _, rows in model.scores(texts)])


def _correlations(cosines: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return {"spearman": spearman(cosines, scores), "pearson": pearson(cosines, scores)}


def _spans(model: EntityTagger, data: TaggedSentences, ids: np.ndarray) -> list[list[Span]]:
    found = entities_in(model.tags, ids, [len(tokens) for tokens in data.tokens])
    return [[Span(number, *each) for each in entities] for number, entities in enumerate(found)]


def _told(spans: Sequence[Span], tokens: Sequence[str]) -> str:
    return "; ".join(f"{span.type} {span.first}:{span.end} {joined(tokens[span.first : span.end])}" for span in spans)
