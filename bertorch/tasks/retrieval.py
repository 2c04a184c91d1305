"""Retrieval as dev data of the embedding scripts, and what an evaluation of it has to tell."""

from collections.abc import Callable
from functools import partial

from loguru import logger
from transformers import PreTrainedTokenizerBase

from bertorch.data.dataset import Examples
from bertorch.data.prompts import NO_PROMPTS, Prompts
from bertorch.data.retrieval import RetrievalTexts, retrieval_form
from bertorch.data.retrieval_dataset import RetrievalDataset
from bertorch.errors import UserError
from bertorch.tasks.base import Errors
from bertorch.tasks.retrieval_metric import DEPTH, RetrievalMetric


def queries_and_passages(
    path: str, *, tokenizer: PreTrainedTokenizerBase, max_length: int, on_bad_line: str, prompts: Prompts
) -> RetrievalDataset:
    """Queries and a corpus in a form of `bertorch.data.retrieval.FORMS`."""
    form = retrieval_form(path)
    if form is None:
        raise UserError(f"{path}: expected a folder with a corpus, or query⇥passage lines; it has changed meanwhile")
    read = form.read(path, on_bad_line=on_bad_line)
    return RetrievalDataset.of(tokenizer, read, prompts=prompts, max_length=max_length)


def dev_reader(
    path: str | None, labelled: Callable[..., Examples], prompts: Prompts = NO_PROMPTS
) -> Callable[..., Examples]:
    """The reading function of dev data: `queries_and_passages` if the path has such a form, else `labelled`.

    Raises:
        UserError: the path cannot be read.
    """
    if path is None or retrieval_form(path) is None:
        return labelled
    logger.info("{}: has queries and passages, for evaluation by retrieval", path)
    return partial(queries_and_passages, prompts=prompts)


def not_found_first(metric: RetrievalMetric, source: RetrievalTexts) -> Errors:
    """The queries whose first passage is not relevant, those first whose best relevant one is furthest behind it."""
    best: dict[int, tuple[int, int]] = {}  # of each query, the best rank of a relevant passage, and the passage
    hits = zip(metric.hits.queries.tolist(), metric.hits.ranks.tolist(), metric.hit_passages.tolist(), strict=True)
    for query, rank, passage in hits:
        best[query] = min(best.get(query, (rank, passage)), (rank, passage))
    for query, passage in source.relevant.tolist():
        best.setdefault(query, (DEPTH + 1, passage))
    wrong = [(rank, query, passage) for query, (rank, passage) in best.items() if rank > 1]
    rows = []
    for rank, query, passage in sorted(wrong, key=lambda each: (-each[0], each[1])):
        first, shown = metric.first[query], f"over {DEPTH}" if rank > DEPTH else str(rank)
        score = f"{metric.first_scores[query]:.6f}"
        rows.append([source.queries[query], source.passages[first], score, source.passages[passage], shown])
    return Errors(["query", "first", "score", "best_relevant", "its_rank"], rows)
